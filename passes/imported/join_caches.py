"""Keys and values of a past that an exporter joins with new ones, as the ops that append to a cache and read it."""

from __future__ import annotations

from ...ir import ops
from ...ir.graph import Graph, Node, Value
from ...ir.ops.attention import Attention
from ...ir.ops.shape import Concat, Transpose
from ..dce import dce

HEADS_FIRST = (0, 2, 1, 3)


def join_caches(graph: Graph) -> int:
    """Concatenations [B,K,P,D] with [B,K,S,D] that attention reads become ops of a cache. Gives how many."""
    joined = 0
    for node in [n for n in graph if isinstance(n.op, Concat)]:
        reads = _reads(node)
        if not reads:
            continue
        past, new = node.arguments
        with graph.at(node):
            cache = ops.cache_append(past, _tokens_first(new))
            keys = ops.cache_read(cache)
        for read in reads:
            graph.replace(read.output, keys)
        graph.replace(node.output, cache)
        joined += 1
    if joined:
        dce(graph)
    return joined


def _reads(node: Node) -> list[Node]:
    """The transposes to [B,T,K,D] between a concatenation along tokens and attention; none where it is no cache."""
    if len(node.arguments) != 2 or node.output.rank != 4 or node.attributes["axis"] % 4 != 2:
        return []
    past, new = node.arguments
    if past is new or past not in past.graph.inputs.values():
        return []
    turned = [
        n for n in node.output.users if isinstance(n.op, Transpose) and n.attributes["permutation"] == HEADS_FIRST
    ]
    return [n for n in turned if any(isinstance(u.op, Attention) for u in n.output.users)]


def _tokens_first(new: Value) -> Value:
    inner = new.producer
    if inner is not None and isinstance(inner.op, Transpose) and inner.attributes["permutation"] == HEADS_FIRST:
        return inner.value("x")
    return ops.transpose(new, permutation=HEADS_FIRST)
