"""Slices: bounds counted from either end, steps, and what is surely inside of an axis."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir import ops
from ...ir.graph import Value
from ...ir.types import Dim, DimLike, i64, never_negative
from .equal import least
from .errors import Unmapped
from .use import Use

_FAR = 10**9
"""Where a bound means the end: some exporters write this number, others the largest integer."""


def _bounds(use: Use, rank: int) -> list[tuple[int, DimLike, DimLike, int]]:
    """(axis, start, end, step) of a Slice."""
    if use.version < 10:
        starts, ends = use.attribute("starts"), use.attribute("ends")
        axes: Sequence[int] = use.attribute("axes", tuple(range(len(starts))))
        steps: Sequence[int] = [1] * len(starts)
    else:
        starts, ends = use.dims(1), use.dims(2)
        axes = use.ints(3) if use.has(3) else range(len(starts))
        steps = use.ints(4) if use.has(4) else [1] * len(starts)
    return [(use.axis(a, rank), s, e, n) for a, s, e, n in zip(axes, starts, ends, steps, strict=True)]


def _place(at: DimLike, size: DimLike) -> DimLike:
    """A bound counted from 0, and inside where that can be told."""
    if isinstance(at, int):
        if at >= _FAR:
            return size
        if isinstance(size, int):
            return min(max(at + size if at < 0 else at, 0), size)
        return size + at if at < 0 else at
    if not never_negative(-1 * at):
        return at
    place = size + at  # Counted from the end; one of 0 would be the first again.
    if place == 0 or (never_negative(-1 * at - 1) and never_negative(place)):
        return place
    raise Unmapped(f"whether {at} counts from the end of {size} elements is not known")


def slice_of(use: Use) -> Value:
    """A Slice, of axes whose sizes may be symbols."""
    x = use[0]
    for axis, start, end, step in _bounds(use, x.rank):
        size = x.shape[axis]
        if step == 1:
            first, last = _place(start, size), _place(end, size)
            length = last - first
            if isinstance(length, int) and length < 0:
                length = 0
            sinks = isinstance(length, Dim) and _may_sink(length) and not use.importer.sizes.chosen(length)
            beyond = isinstance(last, int) and isinstance(size, Dim) and last > least(size)
            if sinks or (beyond and not (isinstance(length, int) and length <= 1)):
                raise Unmapped(f"whether [{start}:{end}] is inside the {size} elements is not known")
            x = ops.slice_(x, axis=axis, start=first, length=length)
        else:
            x = _strided(use, x, axis, start, end, step)
    return x


def _may_sink(length: Dim) -> bool:
    """Whether a length has no positive part at all."""
    return all(c < 0 for symbols, c in length.terms if symbols)


def _strided(use: Use, x: Value, axis: int, start: DimLike, end: DimLike, step: int) -> Value:
    size = x.shape[axis]
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        last: int | None = None if step < 0 and end < -size else end
        chosen = list(range(size))[start:last:step]
        if not chosen:
            return ops.slice_(x, axis=axis, start=0, length=0)
        return ops.gather(x, ops.constant(value=tuple(chosen), dtype=i64), axis=axis)
    reverse = (step == -1 and isinstance(start, int) and start in (-1, _FAR)) or (
        isinstance(start, int) and start >= _FAR
    )
    if step == -1 and reverse and isinstance(end, int) and end <= -_FAR:
        places = ops.iota(start=0, length=size) * -1 + ops.reshape(ops.iota(start=size - 1, length=1), shape=())
        return ops.gather(x, places, axis=axis)
    whole = end == size or (isinstance(end, int) and end >= _FAR)
    count = use.importer.sizes.quotient(size - start + step - 1, step) if whole and step > 1 else None
    if count is None or not isinstance(start, int) or not 0 <= start < step:
        raise Unmapped(f"a slice with step {step} of {size} elements")
    if step * count != size:
        return ops.gather(x, ops.iota(start=0, length=count) * step + start, axis=axis)
    groups = (*x.shape[:axis], count, step, *x.shape[axis + 1 :])
    chosen = ops.slice_(ops.reshape(x, shape=groups), axis=axis + 1, start=start, length=1)
    return ops.reshape(chosen, shape=(*groups[: axis + 1], *groups[axis + 2 :]))
