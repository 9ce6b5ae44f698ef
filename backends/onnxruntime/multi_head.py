"""Attention without a cache on ONNX Runtime: what MultiHeadAttention can say, and the pass that says it."""

from __future__ import annotations

from ...ir.graph import Graph, Node, Value
from ...ir.ops.attention import Attention
from ...ir.ops.elementwise import cast
from ...ir.ops.shape import reshape
from ...ir.types import i32
from ...passes.pattern import NearMiss, Report
from ..onnx.rewrites import heads_first, is_read
from ..target import Target
from .ops import multi_head_attention


class MultiHead:
    """Attention without causality and with nothing but a key mask => MultiHeadAttention."""

    name = "ort_multi_head_attention"

    def __init__(self, target: Target) -> None:
        self.target = target

    def run(self, graph: Graph) -> Report:
        report = Report({self.name: 0})
        for node in graph:
            if not isinstance(node.op, Attention) or node.attributes["causal"]:
                continue
            reason = self.reason(node)
            if reason is None:
                with graph.at(node):
                    graph.replace(node.output, self.attention(node))
                graph.erase(node)
                report.counts[self.name] += 1
            else:
                report.misses.append(NearMiss(self.name, node.location, reason, 1, 1, frozenset(), True))
        return report

    def reason(self, node: Node) -> str | None:
        q, k, mask = node.value("q"), node.value("k"), node["mask"]
        if q.shape[2] != k.shape[2]:
            return f"{q.shape[2]} query heads share {k.shape[2]} key heads, and the kernel wants one each"
        given = {"a bias": node["bias"], "lengths": node["lengths"], "sinks": node["sinks"]}
        given |= {"a softcap": node.attributes["softcap"]}
        extra = [name for name, x in given.items() if x is not None]
        if extra:
            return f"it has {' and '.join(extra)}"
        if not self.target.has("MultiHeadAttention", q.dtype):
            return f"there is no MultiHeadAttention in {q.dtype} on {self.target.provider}"
        batch, keys = k.shape[:2]
        if mask is not None and mask.shape != (batch, 1, 1, keys):
            return f"its mask {mask.type} is not one over keys, [{batch},1,1,{keys}]"
        return None

    def attention(self, node: Node) -> Value:
        q, k, v, mask = node.value("q"), node.value("k"), node.value("v"), node["mask"]
        keys = None if mask is None else cast(reshape(mask, shape=(mask.shape[0], mask.shape[3])), dtype=i32)
        heads, scale = q.shape[2], node.attributes["scale"]
        assert isinstance(heads, int)
        read = is_read(k) and is_read(v)  # As they lie in memory: a step need not move all that was remembered.
        k, v = heads_first(k, v) if read else (_flat(k), _flat(v))
        y = multi_head_attention(_flat(q), k, v, keys, heads=heads, scale=scale, heads_first=read)
        return reshape(y, shape=node.output.shape)


def _flat(x: Value) -> Value:
    """[B,S,H,D] as [B,S,H*D]."""
    return reshape(x, shape=(x.shape[0], x.shape[1], -1))
