"""ATen ops that choose and place elements by integer tensors and masks."""

from __future__ import annotations

from ...ir import Value, ops
from ...ir.ops.elementwise import Cast
from ...ir.ops.shape import Expand, Iota, Reshape
from ...ir.types import DimLike, Shape, bool_, broadcast, i64, product
from .call import Call, Number, Table, only
from .errors import UnknownFormError
from .shapes import part

Indices = list[Value | None]


def _taken(c: Call, x: Value, dim: int, index: Value) -> Value:
    """index_select."""
    return ops.gather(x, index, axis=dim)


def _gathered(c: Call, x: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    at = dim % x.rank if x.rank else 0
    for axis, (have, want) in enumerate(zip(x.shape, index.shape, strict=True)):
        if axis != at and have != want:
            x = part(x, axis, 0, want)
    return ops.take_along_axis(x, c.cast(index, i64), axis=at)


def _indexed(c: Call, x: Value, indices: Indices) -> Value:
    """x[..., i, j, ...]: integers of broadcast shapes along neighbouring axes, or along axes that are apart."""
    if any(i is not None and i.dtype == bool_ for i in indices):
        raise UnknownFormError("a mask chooses elements: how many come out depends on its numbers")
    at = [axis for axis, i in enumerate(indices) if i is not None]
    given = [i for i in indices if i is not None]
    together = at == list(range(at[0], at[0] + len(at)))
    if not together:  # As in NumPy, what is chosen then comes first.
        rest = [a for a in range(x.rank) if a not in at]
        x, at = ops.transpose(x, permutation=(*at, *rest)), list(range(len(at)))
    ranges = _by_ranges(c, x, at[0], given)
    return ranges if ranges is not None else _by_numbers(c, x, at[0], given)


def _by_numbers(c: Call, x: Value, first: int, given: list[Value]) -> Value:
    """Of several axes their elements are numbered through, so that one gather takes all."""
    if len(given) == 1:
        return ops.gather(x, given[0], axis=first)
    sizes = x.shape[first : first + len(given)]
    place: Value | None = None
    for index, size in zip(given, sizes, strict=True):
        own = _from_left(c, index, size)
        place = own if place is None else place * c.value(size, i64) + own
    assert place is not None
    flat = ops.reshape(x, shape=(*x.shape[:first], product(sizes), *x.shape[first + len(given) :]))
    return ops.gather(flat, place, axis=first)


def _from_left(c: Call, index: Value, size: DimLike) -> Value:
    """Indices counted from the left, where some may be counted from the right."""
    wide = c.cast(index, i64)
    if range_of(wide) is not None:
        return wide
    return ops.where(wide < 0, wide + c.value(size, i64), wide)


def _by_ranges(c: Call, x: Value, first: int, given: list[Value]) -> Value | None:
    """A view, where each index counts all elements of its axis, along an axis of its own: x[i[:, None], j[None, :]]."""
    shape: Shape = broadcast(*(i.shape for i in given)) or ()
    order: list[tuple[int, int]] = []
    for k, index in enumerate(given):
        ranged = range_of(index)
        if ranged is None or ranged[0] != x.shape[first + k]:
            return None
        order.append((len(shape) - ranged[1], first + k))
    places = [to for to, _ in order]
    counted = all(d == 1 or i in places for i, d in enumerate(shape))
    if len(set(places)) != len(places) or not counted:
        return None
    moved = [axis for _, axis in sorted(order)]
    turned = (*range(first), *moved, *range(first + len(given), x.rank))
    x = x if turned == tuple(range(x.rank)) else ops.transpose(x, permutation=turned)
    return c.reshaped(x, (*x.shape[:first], *shape, *x.shape[first + len(given) :]))


def range_of(v: Value) -> tuple[DimLike, int] | None:
    """(n, axis counted from the right, beginning with 1) if a value is 0, 1, ... n - 1 along one axis, else None."""
    axis, shape = None, v.shape
    while v.producer is not None and isinstance(v.producer.op, (Reshape, Cast, Expand)):
        if v.dtype == bool_ or v.dtype.is_float:
            return None
        (source,) = v.producer.arguments
        if isinstance(v.producer.op, Expand) and source.type.elements != v.type.elements:
            return None
        v = source
    if v.producer is None or not isinstance(v.producer.op, Iota) or v.producer.attributes["start"] != 0:
        return None
    long = [i for i, d in enumerate(shape) if d != 1]
    axis = long[0] if len(long) == 1 else len(shape) - 1 if not long and shape else None
    return None if axis is None else (v.shape[0], len(shape) - axis)


def _put(c: Call, x: Value, indices: Indices, values: Value, accumulate: bool = False, unsafe: bool = False) -> Value:
    """x with values at the places that the indices or a mask say."""
    (mask, *rest) = indices
    if mask is not None and mask.dtype == bool_ and not rest:
        if accumulate or (values.rank and values.type.elements != 1 and values.rank > x.rank - mask.rank):
            raise UnknownFormError("a mask says where several values go, one after another")
        whole = (*mask.shape, *(1,) * (x.rank - mask.rank))
        return ops.where(c.reshaped(mask, whole), c.cast(_single(c, values, x), x.dtype), x)
    given = [i for i in indices if i is not None]
    if any(i.dtype == bool_ for i in given):
        raise UnknownFormError("index_put by several masks, or by a mask beside numbers")
    at = [axis for axis, i in enumerate(indices) if i is not None]
    if at != list(range(len(at))):
        return _put_behind(c, x, at, given, values, accumulate)
    shape: Shape = broadcast(*(i.shape for i in given)) or ()
    lines = [
        c.reshaped(c.expanded(_from_left(c, i, x.shape[axis]), shape), (*shape, 1)) for axis, i in enumerate(given)
    ]
    places = lines[0] if len(lines) == 1 else ops.concat(*lines, axis=-1)
    updates = c.expanded(c.cast(values, x.dtype), (*shape, *x.shape[len(given) :]))
    return ops.scatter_nd(x, places, updates, reduction="add" if accumulate else "none")


def _put_behind(c: Call, x: Value, at: list[int], given: list[Value], values: Value, accumulate: bool) -> Value:
    """Along neighbouring axes that are not the first: these go to the front meanwhile."""
    first, count = at[0], len(at)
    if at != list(range(first, first + count)):
        raise UnknownFormError("index_put along axes that are apart")
    chosen = len(broadcast(*(i.shape for i in given)) or ())
    rest = [a for a in range(x.rank) if a not in at]
    order = (*at, *rest)
    shape: Shape = (*x.shape[:first], *(broadcast(*(i.shape for i in given)) or ()), *x.shape[first + count :])
    values = c.expanded(c.cast(values, x.dtype), shape)
    moved = (*range(first, first + chosen), *range(first), *range(first + chosen, values.rank))
    y = _put(c, ops.transpose(x, permutation=order), [*given], ops.transpose(values, permutation=moved), accumulate)
    return ops.transpose(y, permutation=tuple(order.index(a) for a in range(x.rank)))


def _masked_scatter(c: Call, x: Value, mask: Value, source: Value) -> Value:
    """Where the mask is true, the elements of source, one after another."""
    keep = c.expanded(mask, c.shape)
    flat = ops.reshape(c.cast(keep, i64), shape=(-1,))
    place = ops.maximum(ops.cumsum(flat, axis=0) - 1, c.value(0, i64))
    taken = ops.gather(ops.reshape(source, shape=(-1,)), place, axis=0)
    return ops.where(keep, c.reshaped(taken, c.shape), c.expanded(x, c.shape))


def _single(c: Call, values: Value, x: Value) -> Value:
    return c.reshaped(values, ()) if values.type.elements == 1 and values.rank > x.rank else values


def _scattered(c: Call, x: Value, dim: int, index: Value, source: Number, reduce: str = "") -> Value:
    places = c.cast(index, i64)
    updates = c.value(source, x.dtype) if not isinstance(source, Value) else c.cast(source, x.dtype)
    if updates.shape != places.shape:
        for axis, want in enumerate(places.shape if updates.rank else ()):
            updates = part(updates, axis, 0, want)
        updates = c.expanded(updates, places.shape)
    names = {"": "none", "add": "add", "multiply": "mul"}
    if reduce not in names:
        raise UnknownFormError(f"scatter joins values by {reduce}")
    return ops.scatter(x, places, updates, axis=dim, reduction=names[reduce])


def _scatter_add(c: Call, x: Value, dim: int, index: Value, source: Value) -> Value:
    return _scattered(c, x, dim, index, source, "add")


def _reduced(c: Call, x: Value, dim: int, index: Value, source: Value, reduce: str, include_self: bool = True) -> Value:
    only(include_self, True, "include_self")
    names = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min"}
    if reduce not in names:
        raise UnknownFormError(f"scatter_reduce joins values by {reduce}")
    return ops.scatter(x, c.cast(index, i64), source, axis=dim, reduction=names[reduce])


def _embedded(
    c: Call, table: Value, ids: Value, padding: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Value:
    """The row of `padding` gets no gradient."""
    rows = ops.embedding(ids, table)
    only(scale_grad_by_freq, False, "scale_grad_by_freq")
    if padding < 0 or not c.learns:
        return rows
    padded = c.reshaped(ids.eq(padding), (*ids.shape, 1))
    return ops.where(padded, ops.detach(rows), rows)


def _one_hot(c: Call, ids: Value, classes: int = -1) -> Value:
    count = c.shape[-1]
    return c.cast(c.reshaped(ids, (*ids.shape, 1)).eq(ops.iota(start=0, length=count)), c.dtype)


INDEXING: Table = {
    "aten.index_select.default": _taken,
    "aten.gather.default": _gathered,
    "aten.index.Tensor": _indexed,
    "aten._unsafe_index.Tensor": _indexed,
    **dict.fromkeys(("aten.index_put.default", "aten._unsafe_index_put.default"), _put),
    **dict.fromkeys(("aten.scatter.src", "aten.scatter.value", "aten.scatter.reduce"), _scattered),
    "aten.masked_scatter.default": _masked_scatter,
    "aten.scatter_add.default": _scatter_add,
    "aten.scatter_reduce.two": _reduced,
    "aten.embedding.default": _embedded,
    "aten.one_hot.default": _one_hot,
}
"""Handlers of the ops of this file."""
