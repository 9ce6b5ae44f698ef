"""Residual streams: the sums that layers add to, and a stream kept at a power of two of its size.

Norms do not see the size of what they read, once their epsilon has shrunk with it. So what is added to a stream can be
made smaller, for nothing where that is a factor of weights, and the stream fits 16-bit floats without a cast.
"""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from ..ir.ops.linear import Linear
from .dce import dce


def streams_of(graph: Graph) -> list[list[Node]]:
    """The residual streams of a graph: nodes whose sums go into one another, two at least."""
    sums = {n.outputs[n.op.total]: n for n in graph if n.op.total is not None}
    group: dict[Node, list[Node]] = {}
    for node in sums.values():
        before = [group[sums[v]] for v in node.operands[:2] if v is not None and v in sums]
        joined = [node] + [n for part in {id(b): b for b in before}.values() for n in part]
        group |= dict.fromkeys(joined, joined)
    return [members for members in {id(g): g for g in group.values()}.values() if len(members) > 1]


def sum_of(node: Node) -> Value:
    """The sum that a node of a stream makes."""
    return node.outputs[node.op.total or 0]


def shrink(graph: Graph, members: list[Node], steps: int) -> None:
    """Keep a stream at 1/2**steps of its size: what enters is smaller, what leaves is made larger again.

    The graph computes what it did, to the last bit where no number becomes too small for its type.
    """
    factor, chain = 2.0**-steps, {sum_of(n) for n in members}
    for v in chain:
        for node, i in list(v.uses):
            if node in members and i < 2:
                continue
            if node.op.scale_free and i == 0:
                node.attributes["eps"] *= factor**2
            else:
                with graph.at(node):
                    graph.set_operand(node, i, v * (1.0 / factor))
    for name, v in list(graph.outputs.items()):
        if v in chain:
            with graph.at(None):
                graph.outputs[name] = v * (1.0 / factor)
    for node in members:
        if node.op.scale_free:
            node.attributes["eps"] *= factor**2
        for i, v in enumerate(node.operands[:2]):
            if v is not None and v not in chain:
                graph.set_operand(node, i, _smaller(graph, v, node, factor))
    dce(graph)


def _smaller(graph: Graph, v: Value, reader: Node, factor: float) -> Value:
    """A value times a factor: by the weights that it is made with, if nothing else reads it."""
    node = v.producer
    alone = len(v.uses) == 1 and not graph.is_output(v)
    if node is None or not alone or not (isinstance(node.op, Linear) or node.op.scale_free) or len(node.outputs) > 1:
        with graph.at(reader):
            return v * factor
    with graph.at(node):
        operands = list(node.operands)
        names = node.op.signature.operand_names(len(operands))
        # Weights that are stored in blocks stay as they are.
        part = "w" if node.op.scale_free or node.value("w").is_param else "x"
        for i, (name, given) in enumerate(zip(names, operands, strict=True)):
            if given is not None and name in (part, "b"):
                operands[i] = given * factor
        return graph.add(node.op, operands, dict(node.attributes), node.location)[0]
