"""ATen ops that order elements or count them: sorts, the largest few, bins, products by groups of rows."""

from __future__ import annotations

from typing import Any

from ...ir import Value, ops
from ...ir.types import DimLike, i64
from .call import Call, Number, Result, Table, only
from .errors import UnknownFormError


def _largest(c: Call, x: Value, k: Number, dim: int = -1, largest: bool = True, sorted: bool = True) -> Result:
    if isinstance(k, (Value, float)):
        raise UnknownFormError("topk takes as many elements as a tensor says")
    return _first(c, x, k, dim, largest)


def _sorted(c: Call, x: Value, dim: int = -1, descending: bool = False) -> Result:
    if not x.rank:
        return x, c.value(0, i64)
    return _first(c, x, x.shape[dim], dim, descending)


def _stable(c: Call, x: Value, stable: bool | None = True, dim: int = -1, descending: bool = False) -> Result:
    return _sorted(c, x, dim, descending)


def _first(c: Call, x: Value, k: DimLike, dim: int, descending: bool) -> tuple[Value, Value]:
    """k elements in their order along an axis, and their places; of equals the first comes first."""
    at = dim % x.rank
    order = [a for a in range(x.rank) if a != at] + [at]
    back = tuple(order.index(a) for a in range(x.rank))
    keys = x if x.dtype.is_float else c.cast(x, i64)
    _, places = ops.topk(ops.transpose(keys if descending else ops.neg(keys), permutation=tuple(order)), k=k)
    places = ops.transpose(places, permutation=back)
    return ops.take_along_axis(x, places, axis=at), places


def _smallest(c: Call, x: Value, k: int, dim: int = -1, keepdim: bool = False) -> Result:
    """kthvalue: the k-th smallest and its place."""
    found = _first(c, x, k, dim, False)
    at = dim % x.rank
    last = (ops.slice_(v, axis=at, start=k - 1, length=1) for v in found)
    return tuple(c.reshaped(v, t.shape) for v, t in zip(last, c.types, strict=True))


def _median(c: Call, x: Value, dim: int = -1, keepdim: bool = False) -> Result:
    """The lower one of the two in the middle."""
    size = x.shape[dim]
    if not isinstance(size, int):
        raise UnknownFormError(f"the median of {size} elements, which is no number")
    return _smallest(c, x, (size + 1) // 2, dim, keepdim)


def _places(
    c: Call, edges: Value, x: Number, out_int32: bool = False, right: bool = False, side: Any = None, sorter: Any = None
) -> Value:
    """searchsorted: how many of the edges of a row, along the last axis, are less than each element, or not more."""
    only(sorter, None, "sorter")
    found = x if isinstance(x, Value) else c.value(x, edges.dtype)
    wide = c.reshaped(found, (*found.shape, 1))
    rows = c.reshaped(edges, (*edges.shape[:-1], 1, edges.shape[-1])) if edges.rank > 1 else edges
    dtype = wide.dtype if wide.dtype.is_float else rows.dtype
    wide, rows = c.cast(wide, dtype), c.cast(rows, dtype)
    below = ops.less_equal(rows, wide) if right or side == "right" else ops.less(rows, wide)
    return c.cast(ops.sum(c.cast(below, i64), axis=-1, keepdims=False), c.dtype)


def _bucketed(c: Call, x: Number, edges: Value, out_int32: bool = False, right: bool = False) -> Value:
    return _places(c, edges, x, out_int32, right)


def _histogram(c: Call, x: Value, bins: int = 100, low: float = 0, high: float = 0) -> Value:
    """How many elements lie in each of equal parts of a range; its upper end is in the last."""
    if low == high:
        raise UnknownFormError("histc between the smallest and the largest number")
    flat = ops.reshape(x, shape=(-1, 1))
    inside = (flat >= float(low)) & (flat <= float(high))
    part = ops.minimum(ops.floor((flat - float(low)) * (bins / (high - low))), c.value(bins - 1, x.dtype))
    counted = inside & part.eq(c.cast(ops.iota(start=0, length=bins), x.dtype))
    return ops.sum(c.cast(counted, c.dtype), axis=0, keepdims=False)


def _by_groups(c: Call, x: Value, w: Value, ends: Value | None = None, *rest: Any) -> Value:
    """x [S,C] @ w [E,C,O], where rows before ends[0] take w[0], those before ends[1] w[1], and so on, the rest none."""
    groups = w.shape[0]
    if ends is None or not isinstance(groups, int) or x.rank != 2 or w.rank != 3:
        raise UnknownFormError(f"products of {x.type} and {w.type} by groups, expected rows, a weight for each group")
    row = ops.reshape(ops.iota(start=0, length=x.shape[0]), shape=(x.shape[0], 1))
    group = ops.sum(c.cast(ops.less_equal(c.cast(ends, i64), row), i64), axis=-1)
    total = c.expanded(c.value(0, x.dtype), c.shape)
    for i in range(groups):
        weight = c.reshaped(ops.slice_(w, axis=0, start=i, length=1), w.shape[1:])
        total = total + ops.matmul(ops.where(group.eq(i), x, c.value(0, x.dtype)), weight)
    return total


def _bag(
    c: Call,
    table: Value,
    ids: Value,
    starts: Value,
    by_frequency: bool = False,
    mode: int = 0,
    sparse: bool = False,
    weights: Value | None = None,
    last: bool = False,
    padding: int = -1,
) -> Result:
    """embedding_bag: sums (mode 0), means (1) or largest (2) of the rows of each bag; bags begin where `starts` say."""
    only(by_frequency, False, "scale_grad_by_freq")
    bags = c.shape[0]
    first = ops.slice_(c.cast(starts, i64), axis=0, start=0, length=bags)
    place = ops.reshape(ops.iota(start=0, length=ids.shape[0]), shape=(ids.shape[0], 1))
    bag = ops.sum(c.cast(ops.less_equal(first, place), i64), axis=-1) - 1  # [N,1]
    counts = c.reshaped(bag, (1, ids.shape[0])).eq(ops.reshape(ops.iota(start=0, length=bags), shape=(bags, 1)))
    if padding >= 0:
        counts = counts & ids.ne(padding)
    rows = ops.embedding(ids, table)
    if mode == 2:
        return _largest_of_bags(c, rows, counts), None, None, None
    member = c.cast(counts, table.dtype)
    shares = member if weights is None else member * weights
    total = ops.matmul(shares, rows)
    if mode == 1:
        total = total / ops.maximum(ops.sum(member, axis=-1), c.value(1, table.dtype))
    return total, None, None, None


def _largest_of_bags(c: Call, rows: Value, counts: Value) -> Value:
    """rows [N,C] by which bags [M,N] count them; 0 of a bag without any."""
    apart = c.reshaped(counts, (*counts.shape, 1))
    best = ops.argmax(ops.where(apart, rows, c.value(rows.dtype.lowest, rows.dtype)), axis=1, keepdims=False)
    found = ops.take_along_axis(rows, best, axis=0)
    return ops.where(ops.any(counts, axis=-1), found, c.value(0, rows.dtype))


SORTING: Table = {
    "aten.topk.default": _largest,
    "aten.sort.default": _sorted,
    "aten.sort.stable": _stable,
    **dict.fromkeys(("aten.searchsorted.Tensor", "aten.searchsorted.Scalar"), _places),
    **dict.fromkeys(("aten.bucketize.Tensor", "aten.bucketize.Scalar"), _bucketed),
    "aten.kthvalue.default": _smallest,
    "aten.median.dim": _median,
    "aten.histc.default": _histogram,
    **dict.fromkeys(("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default"), _by_groups),
    "aten._embedding_bag.default": _bag,
    "aten._embedding_bag_forward_only.default": _bag,
}
"""Handlers of the ops of this file."""
