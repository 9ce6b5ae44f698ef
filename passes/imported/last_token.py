"""A decoder that was exported with the output of its last token alone gives that of every token again."""

from __future__ import annotations

from ...ir.errors import OpError
from ...ir.graph import Graph, Node, Value
from ...ir.ops.shape import Gather, Reshape, Slice
from ..dce import dce


def give_every_token(graph: Graph, ids: Value) -> int:
    """Compute outputs that follow from the last token of x [B,S,...] alone, token by token, for all. Gives how many.

    ids: the tokens [B,S]. An output [B,1,...] or [B,...] becomes [B,S,...] where each row of it reads that row of x.
    """
    every: dict[Value, Value] = {}
    for node in graph:
        if _takes_last(node, ids):
            every[node.output] = node.value("x")
        elif len(node.outputs) == 1 and any(v in every for v in node.arguments):
            made = _of_every(node, ids, every)
            if made is not None:
                every[node.output] = made
    changed = {k: every[v] for k, v in graph.outputs.items() if v in every}
    graph.outputs |= changed
    dce(graph)
    return len(changed)


def _takes_last(node: Node, ids: Value) -> bool:
    """Whether a node is the last column of x [B,S,...], with its axis or without."""
    if not isinstance(node.op, (Slice, Gather)) or node.value("x").shape[:2] != ids.shape:
        return False
    x, length = node.value("x"), ids.shape[1]
    if node.attributes["axis"] % x.rank != 1:
        return False
    if isinstance(node.op, Slice):
        return node.attributes["start"] == length - 1 and node.attributes["length"] == 1
    indices = node.value("indices")
    return indices.number == -1 and indices.type.elements == 1


def _of_every(node: Node, ids: Value, every: dict[Value, Value]) -> Value | None:
    """What a node makes of every token, if it makes its output of each token by itself."""
    rows, old = ids.shape, node.output
    rest = old.shape[2:] if len(old.shape) > 1 and old.shape[1] == 1 else old.shape[1:]
    if isinstance(node.op, Reshape):
        x = every[node.value("x")]
        return x if x.shape[2:] == rest else None
    graph = old.graph
    with graph.at(node):
        try:
            made = graph.add(
                node.op, [every.get(v, v) if v is not None else None for v in node.operands], dict(node.attributes)
            )[0]
        except OpError:
            return None
    again = made.producer
    assert again is not None
    links = again.op.links(*again.operands, **again.attributes)
    carried = {i for i, v in enumerate(node.operands) if v is not None and v in every}
    own = [k for k in links if k.operand in carried and k.axis == 1]
    straight = all(k.to == 1 and k.shift == 0 and not k.upto for k in own) and {k.operand for k in own} == carried
    return made if straight and made.shape == (*rows, *rest) else None
