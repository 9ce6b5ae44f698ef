"""ATen ops over neighbours in space: padding by what is there, windows, transposed convolutions, means of parts."""

from __future__ import annotations

from typing import Any, cast

from ...ir import Value, ops
from ...ir.types import DimLike, i64
from .call import Call, Table
from .errors import UnknownFormError
from .layers import average_pool, convolution, each_axis, to_size
from .shapes import padded, part


def _padded(c: Call, x: Value, pad: list[DimLike], mode: str | None = "constant", number: float | None = None) -> Value:
    """Constants, or what lies at the same distance on the other side of the edge, at the edge, or at the other end."""
    if mode in (None, "constant"):
        return padded(c, x, pad, number)
    for i in range(0, len(pad), 2):
        x = _by_what_is_there(c, x, x.rank - 1 - i // 2, (pad[i], pad[i + 1]), str(mode))
    return x


def _by_what_is_there(c: Call, x: Value, axis: int, widths: tuple[DimLike, DimLike], mode: str) -> Value:
    before, after = widths
    if (before, after) == (0, 0):
        return x
    size = x.shape[axis]
    last = c.value(size, i64) - 1
    place = ops.iota(start=0, length=before + size + after) - c.value(before, i64)
    if mode == "reflect":
        place = last - ops.abs(last - ops.abs(place))
    elif mode == "replicate":
        place = ops.minimum(ops.maximum(place, c.value(0, i64)), last)
    elif mode == "circular":
        place = ops.mod(place, c.value(size, i64))
    else:
        raise UnknownFormError(f"the mode of a pad is {mode}")
    return ops.gather(x, place, axis=axis)


def _unfolded(c: Call, x: Value, dim: int, size: int, step: int) -> Value:
    """Windows along an axis, their elements along a last axis of their own."""
    at = dim % x.rank
    count = c.shape[at]
    starts = ops.reshape(ops.iota(start=0, length=count) * step, shape=(count, 1))
    windows = ops.gather(x, starts + ops.iota(start=0, length=size), axis=at)
    order = [a for a in range(windows.rank) if a != at + 1]
    return ops.transpose(windows, permutation=(*order, at + 1))


def _any_convolution(
    c: Call,
    x: Value,
    w: Value,
    b: Value | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    more: Any,
    groups: int,
) -> Value:
    """more: rows that a transposed one has at the end beside those that the others say."""
    if not transposed:
        return convolution(c, x, w, b, stride, padding, dilation, groups)
    axes = w.rank - 2
    steps, spread, around, extra = (each_axis(v, axes) for v in (stride, dilation, padding, more))
    for i in range(axes):
        x = _apart(c, x, x.rank - axes + i, steps[i])
    reach = [d * (int(str(n)) - 1) for d, n in zip(spread, w.shape[2:], strict=True)]
    widths = [v for i in reversed(range(axes)) for v in (reach[i] - around[i], reach[i] - around[i] + extra[i])]
    x = padded(c, x, cast("list[DimLike]", widths), 0.0)
    return convolution(c, x, _turned(c, w, groups), b, 1, 0, dilation, groups)


def _apart(c: Call, x: Value, axis: int, step: int) -> Value:
    """x with step - 1 zeros between neighbours along an axis."""
    if step == 1:
        return x
    size = x.shape[axis]
    wide = ops.reshape(x, shape=(*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]))
    widths = tuple((0, step - 1 if a == axis + 1 else 0) for a in range(wide.rank))
    joined = ops.reshape(ops.pad(wide, widths=widths), shape=(*x.shape[:axis], size * step, *x.shape[axis + 1 :]))
    return part(joined, axis, 0, size * step + (1 - step))


def _turned(c: Call, w: Value, groups: int) -> Value:
    """The weight [in, out / groups, ...] of a transposed convolution as [out, in / groups, ...] of a plain one."""
    inner, outer, *taps = (int(str(n)) for n in w.shape)
    for axis, n in enumerate(taps, 2):
        w = ops.gather(w, ops.constant(value=tuple(range(n))[::-1], dtype=i64), axis=axis)
    w = ops.reshape(w, shape=(groups, inner // groups, outer, *taps))
    w = ops.transpose(w, permutation=(0, 2, 1, *range(3, w.rank)))
    return ops.reshape(w, shape=(groups * outer, inner // groups, *taps))


def _mean_of_parts(axes: int) -> Any:
    """adaptive_avg_pool; parts of different sizes are a product with a matrix of weights."""
    whole = to_size(axes)

    def handler(c: Call, x: Value, size: Any) -> Value:
        new = c.shape[-axes:]
        for i, (old, parts) in enumerate(zip(x.shape[-axes:], new, strict=True)):
            known = isinstance(old, int) and isinstance(parts, int)
            if known and parts != 1 and int(str(old)) % int(str(parts)):
                x = _weighted(c, x, x.rank - axes + i, int(str(old)), int(str(parts)))
        return x if x.shape == c.shape else whole(c, x, size)

    return handler


def _weighted(c: Call, x: Value, axis: int, old: int, parts: int) -> Value:
    """Means of `parts` parts of an axis, which overlap where `old` is no multiple of them."""
    edges = [(i * old // parts, -(-(i + 1) * old // parts)) for i in range(parts)]
    weights = tuple(tuple(1 / (end - start) if start <= j < end else 0.0 for start, end in edges) for j in range(old))
    order = (*(a for a in range(x.rank) if a != axis), axis)
    rows = ops.transpose(x, permutation=order) if order != tuple(range(x.rank)) else x
    y = ops.matmul(c.reshaped(rows, (1, *rows.shape)), ops.constant(value=weights, dtype=x.dtype))
    y = c.reshaped(y, y.shape[1:])
    back = tuple(order.index(a) for a in range(x.rank))
    return ops.transpose(y, permutation=back) if order != tuple(range(x.rank)) else y


def _mean_pool(axes: int) -> Any:
    """avg_pool; where padding does not count, the sum is divided by how many elements there are."""
    plain = average_pool(axes)

    def handler(
        c: Call,
        x: Value,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        counted: bool = True,
        divisor: int | None = None,
    ) -> Value:
        y = plain(c, x, kernel, stride, padding, ceil_mode, True, divisor)
        if counted or divisor is not None or not any(each_axis(padding, axes)):
            return y
        here = c.expanded(c.value(1, x.dtype), x.shape)
        return y / plain(c, here, kernel, stride, padding, ceil_mode, True, None)

    return handler


SPATIAL: Table = {
    "aten.pad.default": _padded,
    "aten.unfold.default": _unfolded,
    "aten.convolution.default": _any_convolution,
    "aten.avg_pool1d.default": _mean_pool(1),
    "aten.avg_pool2d.default": _mean_pool(2),
    "aten.adaptive_avg_pool1d.default": _mean_of_parts(1),
    "aten.adaptive_avg_pool2d.default": _mean_of_parts(2),
    "aten._adaptive_avg_pool2d.default": _mean_of_parts(2),
}
"""Handlers of the ops of this file."""
