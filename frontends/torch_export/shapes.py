"""ATen ops that move elements: other shapes, orders, parts, joins."""

from __future__ import annotations

from typing import Any

from ...ir import Value, ops
from ...ir.types import DimLike, Shape, bool_, exact_div, i64
from .call import Call, Number, Table, axes_of, only
from .errors import UnknownFormError


def _reshaped(c: Call, x: Value, *rest: Any) -> Value:
    """All views: PyTorch has said which shape comes out."""
    return c.reshaped(x, c.shape)


def _as(c: Call, x: Value, dtype: Any) -> Value:
    only(c.dtype, x.dtype, "the element type of a view")
    return c.reshaped(x, c.shape)


def _expanded(c: Call, x: Value, *rest: Any) -> Value:
    return c.expanded(x, c.shape)


def _permuted(c: Call, x: Value, dims: list[int]) -> Value:
    order = tuple(d % x.rank for d in dims)
    return x if order == tuple(range(x.rank)) else ops.transpose(x, permutation=order)


def _swapped(c: Call, x: Value, first: int, second: int) -> Value:
    if x.rank == 0:
        return x
    order = list(range(x.rank))
    a, b = first % x.rank, second % x.rank
    order[a], order[b] = order[b], order[a]
    return _permuted(c, x, order)


def _turned(c: Call, x: Value) -> Value:
    return _permuted(c, x, [1, 0]) if x.rank == 2 else x


def part(x: Value, axis: int, start: DimLike, length: DimLike) -> Value:
    """x[start : start + length] along an axis; x itself if that is all of it."""
    if start == 0 and length == x.shape[axis]:
        return x
    return ops.slice_(x, axis=axis, start=start, length=length)


def start_of(c: Call, size: DimLike, start: Any) -> DimLike:
    """Where a slice begins, counted from the left. Raises UnknownFormError where that depends on the inputs."""
    if start is None:
        return 0
    if isinstance(start, Value):
        raise UnknownFormError("a slice begins where the numbers of a tensor say")
    if c.dims.at_least(start, 0):
        inside = c.dims.at_least(size - start, 0)
        return start if inside else c.dims.smallest(size, start)
    return c.dims.largest(size + start, 0) if c.dims.at_least(-1 * start, 0) else start


def _sliced(c: Call, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    at = dim % x.rank
    first, length = start_of(c, x.shape[at], start), c.shape[at]
    if step == 1:
        return part(x, at, first, length)
    return ops.gather(x, ops.iota(start=0, length=length) * step + first, axis=at)


def _selected(c: Call, x: Value, dim: int, index: Any) -> Value:
    at = dim % x.rank
    if isinstance(index, Value):
        return ops.gather(x, c.reshaped(index, ()), axis=at)
    start = index if c.dims.at_least(index, 0) else x.shape[at] + index
    return c.reshaped(part(x, at, start, 1), c.shape)


def _narrowed(c: Call, x: Value, dim: int, start: Any, length: Any) -> Value:
    at = dim % x.rank
    return part(x, at, start_of(c, x.shape[at], start), length)


def _parts(c: Call, x: Value, *rest: Any) -> tuple[Value, ...]:
    """split, chunk: PyTorch has said how long the parts are."""
    dim = rest[1] if len(rest) > 1 else 0
    at = dim % x.rank
    found: list[Value] = []
    start: DimLike = 0
    for t in c.types:
        found.append(part(x, at, start, t.shape[at]))
        start = start + t.shape[at]
    return tuple(found)


def _unbound(c: Call, x: Value, dim: int = 0) -> tuple[Value, ...]:
    at = dim % x.rank
    return tuple(c.reshaped(part(x, at, i, 1), t.shape) for i, t in enumerate(c.types))


def _joined(c: Call, xs: list[Value], dim: int = 0) -> Value:
    # PyTorch lets a tensor of shape [0] stand beside any other.
    kept = [c.cast(x, c.dtype) for x in xs if x.shape != (0,) or len(c.shape) == 1]
    return kept[0] if len(kept) == 1 else ops.concat(*kept, axis=dim)


def _stacked(c: Call, xs: list[Value], dim: int = 0) -> Value:
    at = dim % len(c.shape)
    whole = (*c.shape[:at], 1, *c.shape[at + 1 :])
    return ops.concat(*(c.reshaped(c.cast(x, c.dtype), whole) for x in xs), axis=at)


def _repeated(c: Call, x: Value, *rest: Any) -> Value:
    """Whole copies one after another along each axis."""
    old = (*(1,) * (len(c.shape) - x.rank), *x.shape)
    apart = tuple(d for n in old for d in (1, n))
    times: list[DimLike] = [_times(new, n) for new, n in zip(c.shape, old, strict=True)]
    copies = tuple(d for t, n in zip(times, old, strict=True) for d in (t, n))
    return c.reshaped(c.expanded(c.reshaped(x, apart), copies), c.shape)


def _times(new: DimLike, old: DimLike) -> DimLike:
    return 1 if new == old else exact_div(new, old)


def _each_repeated(c: Call, x: Value, repeats: Number, dim: int | None = None, size: Any = None) -> Value:
    """Each element `repeats` times, beside itself."""
    if isinstance(repeats, (Value, float)):
        raise UnknownFormError("repeat_interleave takes its numbers from a tensor")
    y, at = (x, dim % x.rank) if dim is not None else (ops.reshape(x, shape=(-1,)), 0)
    apart = (*y.shape[: at + 1], 1, *y.shape[at + 1 :])
    copies = (*y.shape[: at + 1], repeats, *y.shape[at + 1 :])
    return c.reshaped(c.expanded(c.reshaped(y, apart), copies), c.shape)


def _flipped(c: Call, x: Value, dims: list[int]) -> Value:
    for at in axes_of(dims, x.rank):
        size = x.shape[at]
        backwards = c.value(size, i64) - 1 - ops.iota(start=0, length=size)
        x = ops.gather(x, backwards, axis=at)
    return x


def _rolled(c: Call, x: Value, shifts: list[int], dims: list[int] | None = None) -> Value:
    y = x if dims else ops.reshape(x, shape=(-1,))
    for shift, dim in zip(shifts, dims or [0], strict=True):
        at, size = dim % y.rank, y.shape[dim]
        tail = shift % size if isinstance(size, int) and size else shift
        if tail != 0:
            head = size - tail if tail >= 0 else -tail
            first, second = part(y, at, head, size - head), part(y, at, 0, head)
            y = ops.concat(first, second, axis=at)
    return c.reshaped(y, c.shape)


def padded(c: Call, x: Value, pad: list[DimLike], number: float | None = 0.0) -> Value:
    """Constants around; negative widths take elements away."""
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)][::-1]
    widths = [*[(0, 0)] * (x.rank - len(pairs)), *pairs]
    for at, (before, after) in enumerate(widths):
        cut = [d if _negative(d) else 0 for d in (before, after)]
        x = part(x, at, -1 * cut[0], x.shape[at] + cut[0] + cut[1])
    kept = tuple((0 if _negative(a) else a, 0 if _negative(b) else b) for a, b in widths)
    return x if all(a == b == 0 for a, b in kept) else ops.pad(x, widths=kept, value=float(number or 0.0))


def _negative(d: DimLike) -> bool:
    return isinstance(d, int) and d < 0


def _put(c: Call, x: Value, source: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    """x with `source` in place of a slice of it."""
    at = dim % x.rank
    first, new = start_of(c, x.shape[at], start), c.cast(source, x.dtype)
    if step != 1:
        places = ops.iota(start=0, length=new.shape[at]) * step + first
        places = c.reshaped(places, (*(1,) * at, new.shape[at], *(1,) * (x.rank - at - 1)))
        return ops.scatter(x, c.expanded(places, new.shape), new, axis=at)
    return _between(x, new, at, first)


def _put_one(c: Call, x: Value, source: Value, dim: int, index: Any) -> Value:
    at = dim % x.rank
    start = index if c.dims.at_least(index, 0) else x.shape[at] + index
    whole: Shape = (*x.shape[:at], 1, *x.shape[at + 1 :])
    return _between(x, c.reshaped(c.cast(source, x.dtype), whole), at, start)


def _between(x: Value, new: Value, axis: int, start: DimLike) -> Value:
    end = start + new.shape[axis]
    parts = (part(x, axis, 0, start), new, part(x, axis, end, x.shape[axis] - end))
    kept = [p for p in parts if p.shape[axis] != 0]
    return kept[0] if len(kept) == 1 else ops.concat(*kept, axis=axis)


def _triangle(lower: bool) -> Any:
    """tril, triu: zeros on the other side of a diagonal."""

    def handler(c: Call, x: Value, diagonal: Any = 0) -> Value:
        rows, columns = x.shape[-2:]
        row = ops.reshape(ops.iota(start=0, length=rows), shape=(rows, 1)) + diagonal
        column = ops.iota(start=0, length=columns)
        keep = ops.less_equal(column, row) if lower else ops.less_equal(row, column)
        return x & keep if x.dtype == bool_ else ops.where(keep, x, c.value(0, x.dtype))

    return handler


def _diagonal(c: Call, x: Value, offset: int = 0, first: int = 0, second: int = 1) -> Value:
    only((offset, first % x.rank, second % x.rank), (0, x.rank - 2, x.rank - 1), "a diagonal")
    rows, columns = x.shape[-2:]
    flat = ops.reshape(x, shape=(*x.shape[:-2], rows * columns))
    step = c.value(columns, i64) + 1
    return ops.gather(flat, ops.iota(start=0, length=c.shape[-1]) * step, axis=-1)


_VIEWS = (
    "view.default", "_unsafe_view.default", "reshape.default", "unsqueeze.default", "squeeze.default", "squeeze.dim",
    "squeeze.dims", "flatten.using_ints", "unflatten.int", "view_as.default", "reshape_as.default",
    "view_copy.default", "squeeze_copy.default", "unsqueeze_copy.default",
)  # fmt: skip

SHAPES: Table = {
    **{f"aten.{name}": _reshaped for name in _VIEWS},
    "aten.view.dtype": _as,
    **dict.fromkeys(("aten.expand.default", "aten.expand_as.default", "aten.broadcast_to.default"), _expanded),
    **dict.fromkeys(("aten.permute.default", "aten.permute_copy.default"), _permuted),
    **dict.fromkeys(("aten.transpose.int", "aten.swapaxes.default", "aten.swapdims.default"), _swapped),
    "aten.t.default": _turned,
    "aten.slice.Tensor": _sliced,
    "aten.slice_copy.Tensor": _sliced,
    "aten.select.int": _selected,
    "aten.select_copy.int": _selected,
    "aten.narrow.default": _narrowed,
    **dict.fromkeys(
        ("aten.split.Tensor", "aten.split.sizes", "aten.split_with_sizes.default", "aten.chunk.default"), _parts
    ),
    "aten.unbind.int": _unbound,
    "aten.cat.default": _joined,
    "aten.stack.default": _stacked,
    **dict.fromkeys(("aten.repeat.default", "aten.tile.default"), _repeated),
    "aten.repeat_interleave.self_int": _each_repeated,
    "aten.flip.default": _flipped,
    "aten.roll.default": _rolled,
    "aten.constant_pad_nd.default": padded,
    "aten.slice_scatter.default": _put,
    "aten.select_scatter.default": _put_one,
    "aten.tril.default": _triangle(lower=True),
    "aten.triu.default": _triangle(lower=False),
    "aten.diagonal.default": _diagonal,
}
"""Handlers of the ops of this file."""
