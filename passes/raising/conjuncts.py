"""The parts of a mask that must all be true."""

from __future__ import annotations

from ...ir.graph import Node, Value
from ...ir.ops import logic
from ...ir.ops.logic import Less, LessEqual, LogicalAnd, LogicalNot, LogicalOr
from ...ir.ops.shape import Expand, Reshape, Slice, Transpose
from .masks import Truth, both, negated


def conjuncts(x: Truth) -> list[Truth]:
    """The parts that must all be true. A part `not (a and b)` beside `a` is `not b`."""
    parts = _split(x)
    values = {p for p in parts if isinstance(p, Value)}
    found: list[Truth] = []
    for part in parts:
        found += _split(_less(part, values)) if isinstance(part, Value) else [part]
    return list(dict.fromkeys(found))


def _split(x: Truth) -> list[Truth]:
    if isinstance(x, bool):
        return [x]
    node = x.producer
    if node is None:
        return [x]
    if isinstance(node.op, LogicalAnd):
        return [p for v in node.arguments for p in _split(v)]
    inner = node.value("x").producer if isinstance(node.op, LogicalNot) else None
    if inner is not None and isinstance(inner.op, LogicalOr):
        return [p for v in inner.arguments for p in _split(negated(v))]
    if isinstance(node.op, (Reshape, Transpose, Expand, Slice)):
        return _split_below(node)
    return [x]


def _split_below(node: Node) -> list[Truth]:
    """A rearranged conjunction as rearranged parts."""
    x = node.value("x")
    parts = _split(x)
    if len(parts) < 2:
        return [node.output]
    graph = x.graph
    found: list[Truth] = []
    for p in parts:
        if isinstance(p, bool):
            found.append(p)
            continue
        full = p if p.shape == x.shape else graph.apply("expand", (p,), {"shape": x.shape})
        found.append(graph.add(node.op, [full], node.attributes)[0])
    return found


def _less(part: Value, others: set[Value]) -> Truth:
    node = part.producer
    inner = node.value("x").producer if node is not None and isinstance(node.op, LogicalNot) else None
    if inner is None or not isinstance(inner.op, LogicalAnd):
        return part
    left = [p for p in _split(inner.output) if p not in others]
    if len(left) == len(_split(inner.output)) or not left:
        return part
    rest: Truth = True
    for p in left:
        rest = both(rest, p)
    return negated(rest)


def flipped(x: Value) -> Value:
    """not (a < b) as b <= a."""
    node = x.producer
    inner = node.value("x").producer if node is not None and isinstance(node.op, LogicalNot) else None
    if inner is None or not isinstance(inner.op, (Less, LessEqual)):
        return x
    a, b = inner.arguments
    return logic.less_equal(b, a) if isinstance(inner.op, Less) else logic.less(b, a)
