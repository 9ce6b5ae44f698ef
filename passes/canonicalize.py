"""One spelling for each thing: identities removed, reshapes and transposes merged, constants to the right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ir.graph import Graph, Node, Value
from ..ir.op import OPS


def canonicalize(graph: Graph) -> int:
    """Apply every local rule at every node, in one sweep from inputs to outputs. Gives how many rules fired."""
    fired = 0
    for node in graph:
        current: Node | None = node
        while current is not None:
            previous = current.previous
            replacement = _apply(graph, current)
            if replacement is None:
                break
            graph.replace(current.output, replacement)
            graph.erase(current)
            fired += 1
            made = replacement.producer
            current = made if made and (previous is None or made.order > previous.order) else None
    return fired


def _apply(graph: Graph, node: Node) -> Value | None:
    for rule in _RULES.get(node.op.name, ()):
        with graph.at(node):
            replacement = rule(graph, node)
        if replacement is not None:
            return replacement
    return None


def constant_of(v: Value | None) -> Any:
    """The number of a scalar constant, or None."""
    if v is None or v.producer is None or v.producer.op.name != "constant":
        return None
    value = v.producer.attributes["value"]
    return None if isinstance(value, tuple) else value


def _operand(node: Node, i: int = 0) -> Value:
    v = node.operands[i]
    assert v is not None
    return v


def _from(v: Value, op: str) -> Node | None:
    return v.producer if v.producer is not None and v.producer.op.name == op else None


def _add(graph: Graph, op: str, *operands: Value, **attributes: Any) -> Value:
    return graph.add(OPS[op], operands, attributes)[0]


def _same_type(graph: Graph, node: Node) -> Value | None:
    """reshape, expand, cast or slice to the type x already has."""
    x = _operand(node)
    return x if x.type == node.output.type else None


def _merge_reshape(graph: Graph, node: Node) -> Value | None:
    inner = _from(_operand(node), "reshape")
    return _add(graph, "reshape", _operand(inner), shape=node.attributes["shape"]) if inner else None


def _transpose(graph: Graph, node: Node) -> Value | None:
    permutation, x = node.attributes["permutation"], _operand(node)
    if permutation == tuple(range(len(permutation))):
        return x
    inner = _from(x, "transpose")
    if inner is None:
        return None
    first = inner.attributes["permutation"]
    return _add(graph, "transpose", _operand(inner), permutation=tuple(first[i] for i in permutation))


def _neutral(number: float) -> Callable[[Graph, Node], Value | None]:
    """x + 0, x * 1: x, where the shape stays."""

    def rule(graph: Graph, node: Node) -> Value | None:
        x = _operand(node)
        return x if constant_of(node.operands[1]) == number and x.type == node.output.type else None

    return rule


def _constant_right(graph: Graph, node: Node) -> Value | None:
    x, y = _operand(node), _operand(node, 1)
    if constant_of(x) is None or constant_of(y) is not None:
        return None
    return _add(graph, node.op.name, y, x)


def _power(graph: Graph, node: Node) -> Value | None:
    """x ** 2 is x * x; x ** 0.5 is sqrt; x ** -0.5 is rsqrt."""
    x, exponent = _operand(node), constant_of(node.operands[1])
    if exponent == 2:
        return _add(graph, "mul", x, x)
    if exponent == 0.5:
        return _add(graph, "sqrt", x)
    return _add(graph, "rsqrt", x) if exponent == -0.5 else None


def _divide(graph: Graph, node: Node) -> Value | None:
    """a / sqrt(b) is a * rsqrt(b), and 1 / sqrt(b) is rsqrt(b)."""
    root = _from(_operand(node, 1), "sqrt")
    if root is None:
        return None
    inverse = _add(graph, "rsqrt", _operand(root))
    a = _operand(node)
    return inverse if constant_of(a) == 1 and inverse.type == node.output.type else _add(graph, "mul", a, inverse)


def _divide_by_number(graph: Graph, node: Node) -> Value | None:
    """x / c is x * (1 / c)."""
    number = constant_of(node.operands[1])
    if not number or node.output.type != _operand(node).type:
        return None
    return _add(graph, "mul", _operand(node), graph.constant(1.0 / number, node.output.dtype))


def _scale_before_transpose(graph: Graph, node: Node) -> Value | None:
    """transpose(x) * c is transpose(x * c)."""
    x, number = _operand(node), _operand(node, 1)
    if _from(x, "transpose") is None or constant_of(number) is None or x.users != [node] or graph.is_output(x):
        return None
    return _scaled(graph, x, number)


def _scale_onto_query(graph: Graph, node: Node) -> Value | None:
    """(q @ k) * c is (q * c) @ k, for batches of matrices: attention scores."""
    inner = _from(_operand(node), "matmul")
    if inner is None or constant_of(node.operands[1]) is None or node.output.type.rank < 4:
        return None
    if _operand(node).users != [node] or graph.is_output(_operand(node)):
        return None
    return _add(graph, "matmul", _scaled(graph, _operand(inner), _operand(node, 1)), _operand(inner, 1))


def _scaled(graph: Graph, x: Value, number: Value) -> Value:
    """x * number in normal form: below the transposes of x."""
    inner = _from(x, "transpose")
    if inner is None:
        return _add(graph, "mul", x, number)
    return _add(graph, "transpose", _scaled(graph, _operand(inner), number), **inner.attributes)


def _negate(graph: Graph, node: Node) -> Value | None:
    inner = _from(_operand(node), "neg")
    return _operand(inner) if inner else None


def _one_operand(graph: Graph, node: Node) -> Value | None:
    return _operand(node) if len(node.operands) == 1 else None


def _no_dropout(graph: Graph, node: Node) -> Value | None:
    return _operand(node) if node.attributes["p"] == 0 else None


_RULES: dict[str, tuple[Callable[[Graph, Node], Value | None], ...]] = {
    "reshape": (_same_type, _merge_reshape),
    "expand": (_same_type,),
    "cast": (_same_type,),
    "slice": (_same_type,),
    "transpose": (_transpose,),
    "add": (_constant_right, _neutral(0)),
    "mul": (_constant_right, _neutral(1), _scale_before_transpose, _scale_onto_query),
    "maximum": (_constant_right,),
    "pow": (_neutral(1), _power),
    "div": (_neutral(1), _divide, _divide_by_number),
    "sub": (_neutral(0),),
    "neg": (_negate,),
    "concat": (_one_operand,),
    "dropout": (_no_dropout,),
}


def remove_dropout(graph: Graph) -> int:
    """Drop dropout from a graph that will not train. Gives how many."""
    removed = 0
    for node in graph:
        if node.op.name == "dropout":
            graph.replace(node.output, _operand(node))
            graph.erase(node)
            removed += 1
    return removed
