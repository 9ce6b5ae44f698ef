"""Masks that nothing needs: right padding is never seen by a token that counts."""

from __future__ import annotations

from ..ir.graph import Graph
from ..ir.ops.elementwise import Cast
from ..ir.ops.shape import Expand, Reshape
from ..ir.slots import TOKENS
from ..ir.value import Value
from .dce import dce


def drop_padding_mask(graph: Graph) -> int:
    """Remove masks of causal self-attention that come from the mask of the stream alone; gives their number.

    Exact for rows padded on the right whose labels on padding do not count: a causal query at a real token sees
    earlier keys only, and those are real. The input goes too where nothing else reads it.
    """
    count, name = 0, (graph.stream or TOKENS).mask
    for node in graph:
        if not node.op.keys or not node.attributes["causal"]:
            continue
        q, k, mask = node.value("q"), node.value("k"), node["mask"]
        if mask is not None and q.shape[1] == k.shape[1] and _is_padding(mask, name):
            graph.set_operand(node, node.place_of("mask"), None)
            count += 1
    if count:
        dce(graph)
        if not graph.inputs[name].users:
            del graph.inputs[name]
    return count


def _is_padding(mask: Value, name: str) -> bool:
    while mask.producer is not None and isinstance(mask.producer.op, (Cast, Reshape, Expand)):
        mask = mask.producer.value("x")
    return mask.producer is None and mask.name == name
