"""Attention on primitives in many spellings: layout, transposition, scale, groups, masks, guards; one meaning each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from monograph.ir import Graph, Value, building, ops, tensor
from monograph.ir.types import Dim, bool_, f32, i64

Array = np.ndarray[Any, Any]
HEADS, WIDTH = 4, 6
LOWEST = float(np.finfo(np.float32).min)
B, S, T = Dim.symbol("B"), Dim.symbol("S"), Dim.symbol("T")


@dataclass(frozen=True)
class Spelling:
    """How one attention is written. cross: keys are of another length than queries."""

    layout: str = "4d"
    transposed: str = "after"
    scale: str = "scores"
    groups: str = "none"
    mask: str = "none"
    guard: str = "none"
    cross: bool = False
    softcap: float | None = None
    bias: bool = False
    sinks: bool = False

    def __str__(self) -> str:
        return "-".join(str(v) for v in vars(self).values())


def number(x: float, dtype: Any = f32) -> Value:
    return ops.constant(value=x, dtype=dtype)


def build(s: Spelling) -> Graph:
    """q [B,S,H*D], k, v [B,T,K*D] and what the mask needs as inputs; y [B,S,H*D]."""
    g = Graph("spelled")
    keys = T if s.cross else S
    kv = HEADS if s.groups == "none" else 2
    with building(g):
        q = g.input("q", tensor(f32, B, S, HEADS * WIDTH)).split_heads(HEADS)
        k = g.input("k", tensor(f32, B, keys, kv * WIDTH)).split_heads(kv)
        v = g.input("v", tensor(f32, B, keys, kv * WIDTH)).split_heads(kv)
        root = WIDTH**-0.5
        if s.scale in ("q", "both"):
            q = q * (root if s.scale == "q" else math.sqrt(root))
        if s.scale == "q-div":
            q = q / number(math.sqrt(WIDTH))
        if s.scale in ("k", "both"):
            k = k * (root if s.scale == "k" else math.sqrt(root))
        q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        k, v = GROUPS[s.groups](k, keys), GROUPS[s.groups](v, keys)
        weights = _weights(g, s, q, k, keys)
        y = _values(s, weights, v, keys)
        g.output("y", y.transpose(0, 2, 1, 3).merge_heads())
    return g


def _scores(s: Spelling, q: Value, k: Value, keys: Dim) -> Value:
    if s.layout == "3d":
        q, k = q.reshape(B * HEADS, S, WIDTH), k.reshape(B * HEADS, keys, WIDTH)
    elif s.layout == "5d":
        q, k = q.reshape(B, 2, 2, S, WIDTH), k.reshape(B, 2, 2, keys, WIDTH)
    last = tuple(range(q.rank - 2))
    swap = (*last, q.rank - 1, q.rank - 2)
    if s.transposed == "before":
        return ops.matmul(q, k.transpose(*swap))
    if s.transposed == "swapped":
        return ops.matmul(k, q.transpose(*swap)).transpose(*swap)
    # Through the layout [B,H,D,T] by way of other axes.
    back = k.transpose(*(swap[-2:] + last)).transpose(*range(2, q.rank), 0, 1)
    return ops.matmul(q, back)


def _weights(g: Graph, s: Spelling, q: Value, k: Value, keys: Dim) -> Value:
    scores = _scores(s, q, k, keys)
    if s.scale == "scores":
        scores = scores * WIDTH**-0.5
    elif s.scale == "scores-div":
        scores = scores / number(math.sqrt(WIDTH))
    if s.softcap is not None:
        scores = ops.tanh(scores / number(s.softcap)) * s.softcap
    masked_in = scores.shape
    if s.layout != "4d" and (s.mask != "none" or s.bias or s.sinks):
        scores = scores.reshape(B, HEADS, S, keys)
    if s.bias:
        scores = scores + g.input("bias", tensor(f32, 1, HEADS, S, keys))
    scores = MASKS[s.mask](g, scores, keys)
    if s.sinks:
        extra = ops.expand(g.param("sinks", tensor(f32, HEADS)).reshape(1, HEADS, 1, 1), shape=(B, HEADS, S, 1))
        scores = ops.concat(scores, extra, axis=-1)
    weights = GUARDS[s.guard](scores)
    if s.sinks:
        weights = ops.slice_(weights, axis=-1, start=0, length=keys)
    return weights.reshape(*masked_in)


def _values(s: Spelling, weights: Value, v: Value, keys: Dim) -> Value:
    if s.layout == "3d":
        return ops.matmul(weights, v.reshape(B * HEADS, keys, WIDTH)).reshape(B, HEADS, S, WIDTH)
    if s.layout == "5d":
        return ops.matmul(weights, v.reshape(B, 2, 2, keys, WIDTH)).reshape(B, HEADS, S, WIDTH)
    if s.transposed == "swapped":
        return ops.matmul(v.transpose(0, 1, 3, 2), weights.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    return ops.matmul(weights, v)


def _by_expand(x: Value, keys: Dim) -> Value:
    y = ops.expand(x.reshape(B, 2, 1, keys, WIDTH), shape=(B, 2, 2, keys, WIDTH))
    return y.reshape(B, HEADS, keys, WIDTH)


def _by_concat(x: Value, keys: Dim) -> Value:
    halves = [ops.slice_(x, axis=1, start=i, length=1) for i in (0, 0, 1, 1)]
    return ops.concat(*halves, axis=1)


def _by_stack(x: Value, keys: Dim) -> Value:
    y = x.reshape(B, 2, 1, keys, WIDTH)
    return ops.concat(y, y, axis=2).reshape(B, HEADS, keys, WIDTH)


def _by_gather(x: Value, keys: Dim) -> Value:
    return ops.gather(x, ops.constant(value=(0, 0, 1, 1), dtype=i64), axis=1)


def _tiled(x: Value, keys: Dim) -> Value:
    return ops.concat(x, x, axis=1)


GROUPS: dict[str, Callable[[Value, Dim], Value]] = {
    "none": lambda x, _: x, "expand": _by_expand, "concat": _by_concat, "stack": _by_stack, "gather": _by_gather,
    "tile": _tiled,
}  # fmt: skip


# -- masks ---------------------------------------------------------------------------------------------------------


def _key(g: Graph, keys: Dim) -> Value:
    return g.input_of("attention_mask", tensor(i64, B, keys))


def _where(g: Graph, x: Value, keys: Dim) -> Value:
    keep = _key(g, keys).reshape(B, 1, 1, keys).cast(bool_)
    return ops.where(keep, x, number(LOWEST))


def _where_inf(g: Graph, x: Value, keys: Dim) -> Value:
    drop = _key(g, keys).reshape(B, 1, 1, keys).eq(0)
    return ops.where(drop, number(-math.inf), x)


def _inverted(g: Graph, x: Value, keys: Dim) -> Value:
    m = _key(g, keys).reshape(B, 1, 1, keys).cast(f32)
    return x + (number(1.0) - m) * LOWEST


def _less_one(g: Graph, x: Value, keys: Dim) -> Value:
    m = _key(g, keys).reshape(B, 1, 1, keys).cast(f32)
    return x + (m - 1.0) * 1e9


def _ten_thousand(g: Graph, x: Value, keys: Dim) -> Value:
    m = _key(g, keys).reshape(B, 1, 1, keys).cast(f32)
    return x + (number(1.0) - m) * -10000.0


def _bert(g: Graph, x: Value, keys: Dim) -> Value:
    m = ops.expand(_key(g, keys).reshape(B, 1, 1, keys), shape=(B, 1, S, keys)).cast(f32)
    inverted = number(1.0) - m
    return x + ops.where(inverted.cast(bool_), number(LOWEST), inverted)


def _full(g: Graph, x: Value, keys: Dim) -> Value:
    keep = g.input("mask", tensor(bool_, B, 1, S, keys))
    return ops.where(keep, x, number(-math.inf))


def _additive_full(g: Graph, x: Value, keys: Dim) -> Value:
    keep = g.input("mask", tensor(bool_, B, 1, S, keys))
    return x + ops.where(keep, number(0.0), number(-math.inf))


def _lower(keys: Dim) -> Value:
    row = ops.iota(start=keys - S, length=S).reshape(S, 1)
    return row >= ops.iota(start=0, length=keys).reshape(1, keys)


def _causal(g: Graph, x: Value, keys: Dim) -> Value:
    return ops.where(_lower(keys), x, number(LOWEST))


def _causal_added(g: Graph, x: Value, keys: Dim) -> Value:
    bias = ops.where(~_lower(keys), number(-math.inf), number(0.0))
    return x + bias.reshape(1, 1, S, keys)


def _causal_cumsum(g: Graph, x: Value, keys: Dim) -> Value:
    ones = ops.expand(number(1, i64), shape=(S,))
    place = ops.cumsum(ones) - 1
    keep = place.reshape(1, S) <= place.reshape(S, 1)
    return ops.where(keep, x, number(LOWEST))


def _causal_product(g: Graph, x: Value, keys: Dim) -> Value:
    """As older llamas: a table of minima times `j > i`, and padding where the sum with the mask is 0."""
    place = ops.iota(start=0, length=S)
    later = (place.reshape(1, S) > place.reshape(S, 1)).cast(f32)
    table = ops.expand(number(LOWEST), shape=(S, S)) * later
    table = ops.expand(table.reshape(1, 1, S, S), shape=(B, 1, S, S))
    padding = (table + _key(g, keys).reshape(B, 1, 1, S).cast(f32)).eq(0.0)
    return x + ops.where(padding, number(LOWEST), table)


def _causal_and_key(g: Graph, x: Value, keys: Dim) -> Value:
    keep = _key(g, keys).reshape(B, 1, 1, keys).cast(bool_) & _lower(keys).reshape(1, 1, S, keys)
    return x + ops.where(keep, number(0.0), number(LOWEST))


def _vmapped(g: Graph, x: Value, keys: Dim) -> Value:
    """As newer exporters: the mask is indexed by ranges, and every part has all axes."""
    kept = ops.gather(_key(g, keys).cast(bool_), ops.iota(start=0, length=keys), axis=1).reshape(B, 1, 1, keys)
    kept = ops.expand(kept, shape=(B, 1, S, keys))
    lower = ops.expand(_lower(keys).reshape(1, 1, S, keys), shape=(B, 1, S, keys))
    true = ops.expand(ops.constant(value=True, dtype=bool_), shape=(B, 1, S, keys))
    return ops.where((true & lower) & kept, x, number(LOWEST))


def _added_twice(g: Graph, x: Value, keys: Dim) -> Value:
    m = (number(1.0) - _key(g, keys).reshape(B, 1, 1, keys).cast(f32)) * LOWEST
    lower = ops.where(_lower(keys), number(0.0), number(LOWEST)).reshape(1, 1, S, keys)
    return x + ops.maximum(m + lower, number(LOWEST))


def _windowed(g: Graph, x: Value, keys: Dim) -> Value:
    row = ops.iota(start=keys - S, length=S).reshape(S, 1)
    near = row - ops.iota(start=0, length=keys).reshape(1, keys) < 3
    return ops.where(_lower(keys) & near, x, number(LOWEST))


def _biased(g: Graph, x: Value, keys: Dim) -> Value:
    """As T5: the bias of positions and the mask are added up first."""
    m = (number(1.0) - _key(g, keys).reshape(B, 1, 1, keys).cast(f32)) * LOWEST
    return x + (g.input("bias", tensor(f32, 1, HEADS, S, keys)) + m)


def _lengths(g: Graph, x: Value, keys: Dim) -> Value:
    count = g.input("lengths", tensor(i64, B)).reshape(B, 1, 1, 1)
    return ops.where(ops.iota(start=0, length=keys).reshape(1, 1, 1, keys) < count, x, number(LOWEST))


def _triangle(g: Graph, x: Value, keys: Dim) -> Value:
    """A stored triangle of which the corner is cut out."""
    table = ops.constant(value=tuple(tuple(j <= i for j in range(16)) for i in range(16)), dtype=bool_)
    cut = ops.slice_(ops.slice_(table, axis=0, start=0, length=S), axis=1, start=0, length=S)
    return ops.where(cut.reshape(1, 1, S, S), x, number(LOWEST))


Mask = Callable[[Graph, Value, Dim], Value]
MASKS: dict[str, Mask] = {
    "none": lambda g, x, _: x, "where": _where, "where-inf": _where_inf, "inverted": _inverted, "less-one": _less_one,
    "1e4": _ten_thousand, "bert": _bert, "full": _full, "full-added": _additive_full, "causal": _causal,
    "causal-added": _causal_added, "cumsum": _causal_cumsum, "product": _causal_product, "both": _causal_and_key,
    "vmapped": _vmapped, "twice": _added_twice, "window": _windowed, "lengths": _lengths, "triangle": _triangle,
    "biased": _biased,
}  # fmt: skip
CAUSAL = {"causal", "causal-added", "cumsum", "product", "both", "vmapped", "twice", "window", "triangle"}
PADDED = {"where", "where-inf", "inverted", "less-one", "1e4", "bert", "product", "both", "vmapped", "twice", "biased"}
SQUARE = {"cumsum", "product", "triangle"}


# -- guards --------------------------------------------------------------------------------------------------------


def _nan_guard(x: Value) -> Value:
    w = ops.softmax(x)
    return ops.where(w.eq(w), w, number(0.0))


def _safe(x: Value) -> Value:
    """As torch's own decomposition: rows of -inf give zeros."""
    lost = ~ops.any(~x.eq(-math.inf), axis=-1)
    return ops.where(lost, number(0.0), ops.softmax(x))


GUARDS: dict[str, Callable[[Value], Value]] = {
    "none": lambda x: ops.softmax(x), "nan": _nan_guard, "safe": _safe,
    "dropout": lambda x: ops.dropout(ops.softmax(x), p=0.1),
}  # fmt: skip


# -- what it means -------------------------------------------------------------------------------------------------


def inputs_of(g: Graph, s: Spelling, batch: int, rows: int, keys: int, seed: int, kind: str) -> dict[str, Array]:
    """Random inputs; the attention mask of one of four kinds."""
    rng = np.random.default_rng(seed)
    sizes = {"B": batch, "S": rows, "T": keys if s.cross else rows}
    found: dict[str, Array] = {}
    for name, v in g.inputs.items():
        shape = tuple(d if isinstance(d, int) else sizes[str(d)] for d in v.shape)
        if name == "attention_mask":
            found[name] = attention_mask(kind, *shape)
        elif name == "lengths":
            found[name] = rng.integers(1, sizes["T"] + 1, shape)
        elif v.dtype is bool_:
            found[name] = rng.random(shape) < 0.6
        else:
            found[name] = rng.standard_normal(shape).astype(np.float32)
    return found


def attention_mask(kind: str, batch: int, length: int) -> Array:
    mask = np.ones((batch, length), np.int64)
    if batch > 1 and kind == "right":
        mask[0, -2:] = 0
    elif batch > 1 and kind == "left":
        mask[0, :2] = 0
    elif batch > 1 and kind == "holed":
        mask[0, 1] = 0
    return mask


def expected(s: Spelling, given: dict[str, Array], sinks: Array | None) -> tuple[Array, Array]:
    """(attention by its definition, in NumPy and f64; which queries have a key)."""
    q, k, v = (given[n].astype(np.float64) for n in "qkv")
    batch, rows, keys = q.shape[0], q.shape[1], k.shape[1]
    q = q.reshape(batch, rows, HEADS, WIDTH)
    k, v = (x.reshape(batch, keys, -1, WIDTH) for x in (k, v))
    if s.groups != "none":
        k, v = (np.tile(x, (1, 1, 2, 1)) if s.groups == "tile" else np.repeat(x, 2, axis=2) for x in (k, v))
    scale = 1.0 if s.scale == "none" else WIDTH**-0.5
    scores = np.einsum("bshd,bthd->bhst", q, k) * scale
    if s.softcap is not None:
        scores = np.tanh(scores / s.softcap) * s.softcap
    if s.bias or s.mask == "biased":
        scores = scores + given["bias"]
    keep = _kept(s, given, batch, rows, keys)
    scores = np.where(keep, scores, -np.inf)
    extra = np.full((batch, HEADS, rows, 1), -np.inf) if sinks is None else np.broadcast_to(
        sinks.reshape(1, HEADS, 1, 1), (batch, HEADS, rows, 1))  # fmt: skip
    joined = np.concatenate([scores, extra], axis=-1)
    alive = keep.any(axis=-1)
    joined = np.where(alive[..., None], joined, 0.0)
    e = np.exp(joined - joined.max(axis=-1, keepdims=True))
    weights = (e / e.sum(axis=-1, keepdims=True))[..., :-1]
    y = np.einsum("bhst,bthd->bshd", weights, v)
    counts = np.broadcast_to(alive.transpose(0, 2, 1)[..., None], y.shape)
    return y.reshape(batch, rows, -1), counts.reshape(batch, rows, -1)


def _kept(s: Spelling, given: dict[str, Array], batch: int, rows: int, keys: int) -> Array:
    keep = np.ones((batch, HEADS, rows, keys), np.bool_)
    i, j = np.arange(rows)[:, None] + keys - rows, np.arange(keys)[None]
    if s.mask in CAUSAL:
        keep &= j <= i
    if s.mask == "window":
        keep &= i - j < 3
    if s.mask in PADDED:
        keep &= given["attention_mask"][:, None, None, :] != 0
    if s.mask in ("full", "full-added"):
        keep &= given["mask"]
    if s.mask == "lengths":
        keep &= j < given["lengths"].reshape(batch, 1, 1, 1)
    return keep


def spellings() -> Iterator[Spelling]:
    """More than 200 spellings: every pair of choices that can meet, and every mask with every layout and guard."""
    base = Spelling()
    layouts, orders = ("4d", "3d", "5d"), ("before", "after", "swapped")
    scales = ("none", "q", "q-div", "k", "both", "scores", "scores-div")
    seen: dict[Spelling, None] = {}
    for layout, order, scale in itertools.product(layouts, orders, scales):
        seen[replace(base, layout=layout, transposed=order, scale=scale)] = None
    for mask, layout, guard in itertools.product(MASKS, layouts, GUARDS):
        if guard == "safe" and mask in ("none", "1e4"):
            continue
        seen[replace(base, mask=mask, layout=layout, guard=guard)] = None
    for groups, order, mask in itertools.product(GROUPS, orders, ("none", "both", "vmapped")):
        seen[replace(base, groups=groups, transposed=order, mask=mask)] = None
    for mask, groups in itertools.product(sorted(MASKS.keys() - SQUARE), ("none", "expand")):
        seen[replace(base, mask=mask, groups=groups, cross=True)] = None
    for cap, bias, sinks, mask in itertools.product((None, 5.0), (False, True), (False, True), ("none", "both")):
        for layout in layouts:
            seen[replace(base, layout=layout, mask=mask, softcap=cap, bias=bias, sinks=sinks)] = None
    return iter(seen)
