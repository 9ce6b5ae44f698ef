"""Guards that write zeros into the rows of attention without a key: the op gives zeros there by itself."""

from __future__ import annotations

from ...ir.graph import Graph, Node, Value
from ...ir.ops.attention import Attention
from ...ir.ops.elementwise import Cast
from ...ir.ops.logic import Where
from ...ir.ops.shape import Reshape, Transpose
from .check import Check
from .constants import scalar_of
from .unread import erase_unread


def drop_guards(graph: Graph, check: Check) -> int:
    """Replace where(no key, 0, attention) by the attention, if both are equal on hard masks. Gives how many."""
    dropped = 0
    for node in [n for n in graph if isinstance(n.op, Where)]:
        for i in (1, 2):
            kept = node.arguments[i]
            found = _attention(kept) if scalar_of(node.arguments[3 - i]) == 0 else None
            if found is None or kept.type != node.output.type:
                continue
            cuts = {v for name in ("q", "k", "v") if (v := found[name]) is not None}
            if check.difference(node.output, kept, cuts, {found}) is None:
                graph.replace(node.output, kept)
                erase_unread(graph, node.output)
                dropped += 1
                break
    return dropped


def _attention(v: Value) -> Node | None:
    """The attention of which a value is the result, in another layout."""
    while v.producer is not None and isinstance(v.producer.op, (Reshape, Transpose, Cast)):
        v = v.producer.value("x")
    return v.producer if v.producer is not None and isinstance(v.producer.op, Attention) else None
