"""Attention and rotary embedding to the ops of opset 23, with every meaning of a mask spelled out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir.graph import Graph, Node, Value
from ...ir.ops.attention import Attention
from ...ir.ops.cache import CacheAppend, CacheRead
from ...ir.ops.elementwise import constant, exp, maximum, tanh
from ...ir.ops.linear import Embedding
from ...ir.ops.logic import equal, where
from ...ir.ops.position import rope, rotary_angles
from ...ir.ops.reduce import any as any_
from ...ir.ops.reduce import max as max_
from ...ir.ops.reduce import sum as sum_
from ...ir.ops.shape import concat, expand, reshape, transpose
from ...ir.types import DimLike, DType, bool_, exact_div, never_negative
from ...passes.cse import cse
from ...passes.dce import dce
from ...passes.manager import FunctionPass, Pipeline, RewritePass
from ...passes.pattern import NearMiss, Report, Rewrite
from .ops import onnx_attention, onnx_cached_attention, onnx_rotary
from .quantized import QuantizedLayers, StandardLayers
from .recurrent import RecurrentToOnnx


class RotaryToOnnx(Rewrite):
    """rope => sines and cosines once for all layers, and one rotation. They have the batch axis of the positions,
    so that no runtime needs to broadcast them and no table limits the positions."""

    def before(
        self,
        x: Value,
        positions: Value,
        frequencies: Value,
        *,
        interleaved: bool = False,
        rotary_dim: int | None = None,
        scale: float = 1.0,
    ) -> Value:
        return rope(x, positions, frequencies, interleaved=interleaved, rotary_dim=rotary_dim, scale=scale)

    def when(self, **bound: Any) -> bool | str:
        x: Value = bound["x"]
        return x.dtype != DType.f64 or "RotaryEmbedding does not take f64"

    def after(
        self,
        x: Value,
        positions: Value,
        frequencies: Value,
        *,
        interleaved: bool = False,
        rotary_dim: int | None = None,
        scale: float = 1.0,
    ) -> Value:
        c, s = rotary_tables(positions, frequencies, scale, x.dtype)
        return onnx_rotary(x, c, s, interleaved=interleaved, rotary_dim=rotary_dim)


def rotary_tables(positions: Value, frequencies: Value, scale: float, dtype: DType) -> tuple[Value, Value]:
    """(cosines, sines) [B,S,R/2] of the angles of all positions."""
    places = reshape(positions, shape=(*positions.shape, 1))
    return rotary_angles(places, frequencies, scale=scale, dtype=dtype)


@dataclass(frozen=True)
class Appended:
    """Keys or values that a node reads from a cache right after they were appended to it."""

    past: Value
    new: Value
    append: Node
    read: Node


def appended(v: Value, reader: Node) -> Appended | None:
    """How `v` came out of a cache, if `reader` alone reads it and nobody else reads what the append made."""
    read = v.producer
    if read is None or not isinstance(read.op, CacheRead) or v.users != [reader] or v.graph.is_output(v):
        return None
    present = read.value("cache")
    append = present.producer
    if append is None or not isinstance(append.op, CacheAppend) or present.users != [read]:
        return None
    past, new = append.arguments
    return Appended(past, new, append, read)


def _cache_of(node: Node) -> tuple[Appended, Appended] | None:
    """The keys and the values of an attention, if each come out of a cache to which they were just appended."""
    ks, vs = (appended(node.value(name), node) for name in "kv")
    return None if ks is None or vs is None or ks.append is vs.append else (ks, vs)


def keys_of(node: Node) -> Value | None:
    """Which keys each query of an attention node may see, [.., S or 1, T or 1]; None: all. Primitives only."""
    q, k, a = node.value("q"), node.value("k"), node.attributes
    return Attention.keep(q.shape[1], k.shape[1], q.shape[0], node["mask"], node["lengths"], a["causal"], a["window"])


def full_rows(x: Value, rows: DimLike, keys: DimLike) -> Value:
    """A mask or bias with at least [S,T] written out and rank 2 or 4: runtimes broadcast batch and heads only."""
    if x.rank == 3:
        x = reshape(x, shape=(1, *x.shape))
    shape = (*x.shape[:-2], rows, keys)
    return x if x.shape == shape else expand(x, shape=shape)


def never_empty(node: Node) -> bool:
    """Whether every query surely has a key: no mask, and no query before the first key."""
    if node["mask"] is not None or node["lengths"] is not None:
        return False
    return not node.attributes["causal"] or never_negative(node.value("k").shape[1] - node.value("q").shape[1])


_ABOVE = 0.9
"""Of the lowest number of a type: a score of it is masked as well, and runtimes take it for a number."""


def above_lowest(bias: Value) -> Value:
    """A bias in which the lowest number is a little larger.

    ONNX Runtime takes a row of scores that are all the lowest number for one without keys and gives zeros. Softmax of
    equal numbers is their mean, as for any others.
    """
    lowest = bias.dtype.lowest
    masked = equal(bias, constant(value=lowest, dtype=bias.dtype))
    return where(masked, constant(value=_ABOVE * lowest, dtype=bias.dtype), bias)


def may_be_lowest(bias: Value) -> bool:
    """Whether a bias may hold the lowest number of its type: from a constant, a stored mask, or a caller."""
    waiting, seen = [bias], {bias}
    while waiting:
        v = waiting.pop()
        node = v.producer
        if node is None:
            if v.dtype.is_float:
                return True
        elif node.op.constant and v.dtype.is_float:
            if np.min(np.asarray(node.attributes["value"], np.float64), initial=0.0) <= v.dtype.lowest:
                return True
        elif not node.op.heavy and not isinstance(node.op, Embedding):
            waiting += [x for x in node.arguments if x not in seen]
            seen.update(node.arguments)
    return False


def zero_where_empty(y: Value, keep: Value) -> Value:
    """y [B,S,H,D] with zeros in the rows for which `keep` has no key at all."""
    batch, rows, heads, width = y.shape
    found = any_(keep)
    zero = constant(value=0.0, dtype=y.dtype)
    lead = (1,) * (4 - found.rank) + found.shape
    if lead[1] == 1:
        # One answer for all heads: the result stays [B,S,C], the layout that the next layer reads.
        flat = reshape(y, shape=(batch, rows, heads * width))
        flat = where(reshape(found, shape=(lead[0], lead[2], 1)), flat, zero)
        return reshape(flat, shape=(batch, rows, heads, width))
    return where(transpose(reshape(found, shape=lead), permutation=(0, 2, 1, 3)), y, zero)


def with_sinks(k: Value, v: Value, mask: Value | None, sinks: Value, rows: DimLike) -> tuple[Value, Value, Value]:
    """Keys and values with a row of zeros behind them, and the bias [..,H,S,T+1] that gives it the score of a sink."""
    keys, heads = k.shape[1], sinks.shape[0]
    zero, lowest = (constant(value=x, dtype=sinks.dtype) for x in (0.0, sinks.dtype.lowest))
    if mask is None:
        mask = zero
    elif mask.dtype == bool_:
        mask = where(mask, zero, lowest)
    lead = mask.shape[0] if mask.rank == 4 else 1
    bias = expand(mask, shape=(lead, heads, rows, keys))
    extra = expand(reshape(sinks, shape=(1, heads, 1, 1)), shape=(lead, heads, rows, 1))
    k, v = (concat(x, expand(zero, shape=(x.shape[0], 1, *x.shape[2:])), axis=1) for x in (k, v))
    return k, v, concat(bias, extra, axis=-1)


def share_of_keys(scores: Value, mask: Value | None, sinks: Value, softcap: float | None) -> Value:
    """How much of the softmax is that of keys with scores [B,H,S,T] beside sinks [1,H,1 or S,1]: [B,H,S,1]."""
    if softcap is not None:
        scores = tanh(scores * (1.0 / softcap)) * softcap
    if mask is not None:
        lowest = constant(value=scores.dtype.lowest, dtype=scores.dtype)
        scores = where(mask, scores, lowest) if mask.dtype == bool_ else scores + mask
    top = maximum(max_(scores, keepdims=True), sinks)
    keys = sum_(exp(scores - top), keepdims=True)
    return keys / (keys + exp(sinks - top))


def cached_attention(
    q: Value, ks: Appended, vs: Appended, mask: Value | None, sinks: Value | None, scale: float, softcap: float | None
) -> tuple[Value, Value, Value]:
    """(y, present keys, present values) of one op. Of a single token, the heads that share keys are rows of one product
    with them, and nothing is transposed."""
    batch, rows, heads, width = q.shape
    groups, k, v = ks.new.shape[2], ks.new, vs.new
    first = rows == 1
    if first:
        queries = exact_div(heads, groups)
        q = reshape(q, shape=(batch, groups, queries, width))
        k, v = (reshape(x, shape=(batch, groups, 1, x.shape[3])) for x in (k, v))
        if mask is not None:
            mask = _by_group(mask, heads, groups, queries)
    y, present_k, present_v, *scores = onnx_cached_attention(
        q, k, v, ks.past, vs.past, mask, scale=scale, softcap=softcap, scores=sinks is not None, heads_first=first
    )
    if sinks is not None:
        sinks = reshape(sinks, shape=(1, *q.shape[1:3], 1) if first else (1, heads, 1, 1))
        share = share_of_keys(scores[0], mask, sinks, softcap)
        y = y * (share if first else transpose(share, permutation=(0, 2, 1, 3)))
    return reshape(y, shape=(batch, rows, heads, v.shape[3])), present_k, present_v


def _by_group(mask: Value, heads: DimLike, groups: DimLike, queries: DimLike) -> Value:
    """A mask [..,1,T] or [B,H,1,T] of one token for queries that are rows of their group."""
    keys = mask.shape[-1]
    if mask.rank == 4 and mask.shape[1] == heads:
        return reshape(mask, shape=(mask.shape[0], groups, queries, keys))
    return mask if queries == 1 else expand(mask, shape=(*mask.shape[:-2], queries, keys))


class AttentionToOnnx:
    """attention => Attention-23 and an explicit mask of primitives, which layers share.

    Causality, window and lengths become part of the mask, because runtimes differ in how they align `is_causal`.
    Keys that were just appended to a cache leave the append to the op. A sink is one more key of zeros, whose bias it
    is, and a value of zeros; behind a cache this would copy all keys, and the sink takes its share of what the keys
    give. known: the runtime puts a softcap before the mask, where some put it after, and gives the scores beside the
    values; without this both are lowered in parts.
    """

    name = "onnx_attention"

    def __init__(self, *, known: bool = False) -> None:
        self.known = known

    def run(self, graph: Graph) -> Report:
        report = Report({self.name: 0})
        for node in graph:
            if not isinstance(node.op, Attention):
                continue
            reason = self.reason(node)
            if reason:
                report.misses.append(NearMiss(self.name, node.location, reason, 1, 1))
            else:
                with graph.at(node):
                    self.rewrite(graph, node)
                report.counts[self.name] += 1
        return report

    def reason(self, node: Node) -> str | None:
        read = any(is_read(node.value(name)) for name in "kv")
        if node["sinks"] is not None and read and not (self.known and _cache_of(node)):
            return "Attention-23 has no input for sinks, and keys out of a cache would be copied to hold one more"
        if node.attributes["softcap"] is not None and not self.known:
            return "runtimes disagree on whether softcap comes before the mask"
        return None

    def rewrite(self, graph: Graph, node: Node) -> None:
        q, k, v, bias = node.value("q"), node.value("k"), node.value("v"), node["bias"]
        rows, keys = q.shape[1], k.shape[1]
        keep = keys_of(node)
        mask = keep
        if bias is not None:
            bias = above_lowest(bias) if may_be_lowest(bias) else bias
            mask = bias if keep is None else where(keep, bias, constant(value=q.dtype.lowest, dtype=q.dtype))
        mask = None if mask is None else full_rows(mask, rows, keys)
        cache, sinks = _cache_of(node), node["sinks"]
        scale, softcap = node.attributes["scale"], node.attributes["softcap"]
        if scale <= 0:  # ONNX Runtime refuses it.
            q, scale = q * scale, 1.0
        presents: list[Value] = []
        if cache is not None:
            y, *presents = cached_attention(q, *cache, mask, sinks, scale, softcap)
        else:
            if sinks is not None:
                k, v, mask = with_sinks(k, v, mask, sinks, rows)
            first = is_read(k) and is_read(v)
            y = onnx_attention(q, *heads_first(k, v), mask, scale=scale, softcap=softcap, heads_first=first)
        if keep is not None and sinks is None and not never_empty(node):
            y = zero_where_empty(y, keep)
        graph.replace(node.output, y)
        graph.erase(node)
        for x, present in zip(cache or (), presents, strict=True):
            graph.erase(x.read)
            graph.replace(x.append.output, present)
            graph.erase(x.append)


def is_read(v: Value) -> bool:
    """Whether keys or values come straight out of what is remembered."""
    return v.producer is not None and isinstance(v.producer.op, CacheRead)


def heads_first(k: Value, v: Value) -> tuple[Value, Value]:
    """Keys and values as the cache has them, [B,K,T,D], when both come straight out of one."""
    if is_read(k) and is_read(v):
        assert k.producer is not None and v.producer is not None
        return k.producer.arguments[0], v.producer.arguments[0]
    return k, v


def portable(layers: QuantizedLayers) -> Pipeline:
    """The rewrites to standard ops. layers: what becomes of layers over encoded weights."""
    return Pipeline(
        "onnx",
        [
            layers,
            AttentionToOnnx(),
            RewritePass("onnx_rotary", [RotaryToOnnx()]),
            RecurrentToOnnx(),
            FunctionPass("cse", cse),
            FunctionPass("dce", dce),
        ],
    )


PORTABLE = portable(QuantizedLayers(StandardLayers(), "onnx_quantized_layers"))
"""The standard ops only."""

AS_IT_IS = Pipeline("as it is", [])
"""For graphs that have been prepared already."""
