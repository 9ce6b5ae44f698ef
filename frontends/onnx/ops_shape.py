"""Operators of ONNX that move elements, in primitives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir import ops
from ...ir.graph import Value
from ...ir.ops.elementwise import Cast
from ...ir.ops.shape import Iota, Reshape
from ...ir.tensors import Array
from ...ir.types import Dim, DimLike, DType, Shape, bool_, broadcast, i64
from .errors import Unmapped
from .ops_elementwise import number
from .slices import slice_of
from .types import DTYPES
from .use import Handlers, Known, Use


def _reshape(use: Use) -> Value:
    x, wanted = use[0], use.dims(1)
    zero = use.attribute("allowzero", 0)
    shape = tuple(x.shape[i] if isinstance(d, int) and d == 0 and not zero else d for i, d in enumerate(wanted))
    return ops.reshape(x, shape=shape)


def _flatten(use: Use) -> Value:
    x = use[0]
    at = use.attribute("axis", 1)
    at = at + x.rank if at < 0 else at
    rows: DimLike = 1
    columns: DimLike = 1
    for i, d in enumerate(x.shape):
        rows, columns = (rows * d, columns) if i < at else (rows, columns * d)
    return ops.reshape(x, shape=(rows, columns))


def _transpose(use: Use) -> Value:
    x = use[0]
    return ops.transpose(x, permutation=use.attribute("perm", tuple(reversed(range(x.rank)))))


def _squeeze(use: Use) -> Value:
    x = use[0]
    axes = use.axes(1, 13, x.rank)
    if axes is None:
        if any(isinstance(d, Dim) for d in x.shape):
            raise Unmapped("which axes have length 1 is not known")
        axes = tuple(i for i, d in enumerate(x.shape) if d == 1)
    return ops.reshape(x, shape=tuple(d for i, d in enumerate(x.shape) if i not in axes))


def unsqueezed(x: Value, axes: Sequence[int]) -> Value:
    shape = list(x.shape)
    for axis in sorted(axes):
        shape.insert(axis, 1)
    return ops.reshape(x, shape=tuple(shape))


def _unsqueeze(use: Use) -> Value:
    x = use[0]
    given = use.attribute("axes") if use.version < 13 else use.ints(1)
    return unsqueezed(x, [use.axis(a, x.rank + len(given)) for a in given])


def _expand(use: Use) -> Value:
    x = use[0]
    shape = broadcast(x.shape, use.dims(1))
    if shape is None:
        raise Unmapped(f"{x.type} does not broadcast to {list(use.dims(1))}")
    return ops.expand(x, shape=shape)


def _concat(use: Use) -> Value:
    return ops.concat(*use.operands, axis=use.attribute("axis", 1))


def _split(use: Use) -> list[Value]:
    x, axis = use[0], use.axis(use.attribute("axis", 0), use[0].rank)
    count = use.attribute("num_outputs", len(use.node.output))
    if use.version < 13:
        sizes: Sequence[DimLike] | None = use.attribute("split")
    else:
        sizes = use.dims(1) if use.has(1) else None
    if sizes is None:
        size = x.shape[axis]
        if isinstance(size, int):
            part = -(-size // count)
            sizes = [min(part, size - i * part) for i in range(count)]
        else:
            sizes = [size // count] * count
    found: list[Value] = []
    start: DimLike = 0
    for length in sizes or ():
        found.append(ops.slice_(x, axis=axis, start=start, length=length))
        start = start + length
    return found


def from_front(indices: Value, size: DimLike) -> Value:
    """Indices i64 that may count from the end, counted from the front."""
    if indices.dtype != i64:
        indices = indices.cast(i64)
    least = ops.constant(value=0, dtype=i64)
    return ops.where(ops.less(indices, least), indices + dimension(size), indices)


def dimension(d: DimLike) -> Value:
    """A dimension as an i64 scalar."""
    return Known.of(d).value() if isinstance(d, int) else ops.reshape(ops.iota(start=d, length=1), shape=())


def _size(v: Value) -> DimLike | None:
    """The dimension that a scalar is, also as a float: those of a tensor are few enough for it."""
    node = v.producer
    while node is not None and isinstance(node.op, (Cast, Reshape)):
        node = node.value("x").producer
    counted = node is not None and isinstance(node.op, Iota) and node.attributes["length"] == 1
    return node.attributes["start"] if node is not None and counted else None


def _counted(use: Use, i: int, size: DimLike) -> Value:
    """Indices of operand `i` counted from the front, left alone where all are known to be."""
    array = use.importer.array_of(use.node.input[i])
    if array is not None and (array >= 0).all():
        return use[i] if use[i].dtype == i64 else use[i].cast(i64)
    return from_front(use[i], size)


def _gather(use: Use) -> Value:
    return ops.gather(use[0], use[1], axis=use.attribute("axis", 0))


def _gather_elements(use: Use) -> Value:
    x, axis = use[0], use.axis(use.attribute("axis", 0), use[0].rank)
    indices = _counted(use, 1, x.shape[axis])
    for i in range(x.rank):
        if i != axis and x.shape[i] != indices.shape[i]:
            x = ops.slice_(x, axis=i, start=0, length=indices.shape[i])
    return ops.take_along_axis(x, indices, axis=axis)


def _gather_nd(use: Use) -> Value:
    x, indices, batch = use[0], use[1], use.attribute("batch_dims", 0)
    if not batch and indices.shape[-1] == 1:
        return ops.gather(x, ops.reshape(indices, shape=indices.shape[:-1]), axis=0)
    places = use.importer.array_of(use.node.input[1])
    if not batch and places is not None and _in_order(places, x.shape):
        return ops.reshape(x, shape=(*indices.shape[:-1], *x.shape[places.shape[-1] :]))
    if batch:
        places = [
            ops.expand(
                ops.reshape(ops.iota(start=0, length=x.shape[i]), shape=_at(i, x.shape[i], indices.rank)),
                shape=(*indices.shape[:-1], 1),
            )
            for i in range(batch)
        ]
        indices = ops.concat(*places, indices, axis=-1)
    return ops.gather_nd(x, indices)


def _in_order(places: Array, shape: Shape) -> bool:
    """Whether places [n,k] are all there are along k axes, one after the other: `torch.repeat_interleave` writes so."""
    if places.ndim != 2:
        return False
    sizes = [d for d in shape[: places.shape[1]] if isinstance(d, int)]
    if len(sizes) != places.shape[1] or math.prod(sizes) != len(places):
        return False
    return np.array_equal(places, np.indices(sizes).reshape(len(sizes), -1).T)


def _at(axis: int, size: DimLike, rank: int) -> Shape:
    return tuple(size if i == axis else 1 for i in range(rank))


def _scatter_elements(use: Use) -> Value:
    x, axis = use[0], use.axis(use.attribute("axis", 0), use[0].rank)
    return ops.scatter(
        x, _counted(use, 1, x.shape[axis]), use[2], axis=axis, reduction=use.attribute("reduction", "none")
    )


def _scatter_nd(use: Use) -> Value:
    return ops.scatter_nd(use[0], use[1], use[2], reduction=use.attribute("reduction", "none"))


def _pad(use: Use) -> Value:
    x = use[0]
    if use.attribute("mode", "constant") != "constant":
        raise Unmapped(f"mode {use.attribute('mode')} of padding")
    if use.version < 11:
        pads: Sequence[DimLike] = use.attribute("pads")
        value, axes = use.attribute("value", 0.0), range(x.rank)
    else:
        pads, value = use.dims(1), use.number(2, 0.0)
        axes = [use.axis(a, x.rank) for a in use.ints(3)] if use.has(3) else range(x.rank)
    widths: list[tuple[DimLike, DimLike]] = [(0, 0)] * x.rank
    half = len(pads) // 2
    for i, axis in enumerate(axes):
        widths[axis] = (pads[i], pads[half + i])
    for axis, (before, after) in enumerate(widths):
        cut = [-d if isinstance(d, int) and d < 0 else 0 for d in (before, after)]
        if any(cut):
            x = ops.slice_(x, axis=axis, start=cut[0], length=x.shape[axis] - cut[0] - cut[1])
            widths[axis] = (0 if cut[0] else before, 0 if cut[1] else after)
    if all(pair == (0, 0) for pair in widths):
        return x
    return ops.pad(x, widths=tuple(widths), value=value)


def _tile(use: Use) -> Value:
    x, repeats = use[0], use.dims(1)
    shape, wide, final = list[DimLike](), list[DimLike](), list[DimLike]()
    for d, n in zip(x.shape, repeats, strict=True):
        shape += [d] if n == 1 else [1, d]
        wide += [d] if n == 1 else [n, d]
        final.append(n * d)
    return ops.reshape(ops.expand(ops.reshape(x, shape=tuple(shape)), shape=tuple(wide)), shape=tuple(final))


def _range(use: Use) -> Value:
    step, dtype = use.number(2), use.importer.type_of(use.node.input[2]).dtype
    if step != 1:
        raise Unmapped(f"steps of {step}")
    if dtype.is_float:
        start, size = use.number(0), _size(use[1])
        if start != int(start):
            raise Unmapped("starts between integers")
        length = max(0, int(np.ceil(use.number(1) - start))) if size is None else size - int(start)
        return ops.iota(start=int(start), length=length).cast(dtype)
    (start_at,), (end,) = use.dims(0), use.dims(1)
    length_of: DimLike = end - start_at
    if isinstance(length_of, int):
        length_of = max(length_of, 0)
    return ops.iota(start=start_at, length=length_of, dtype=dtype)


def _constant_of_shape(use: Use) -> Value:
    fill = use.attribute("value")
    array: Any = np.zeros(1, np.float32) if fill is None else use.importer.tensor(fill)
    scalar = ops.constant(value=array.reshape(()).item(), dtype=DType.of(array.dtype))
    return ops.expand(scalar, shape=use.dims(0))


def _trilu(use: Use) -> Value:
    x, upper = use[0], use.attribute("upper", 1)
    by = use.ints(1)[0] if use.has(1) else 0
    rows = ops.reshape(ops.iota(start=0, length=x.shape[-2]), shape=(x.shape[-2], 1)) + by
    columns = ops.iota(start=0, length=x.shape[-1])
    keep = ops.less_equal(rows, columns) if upper else ops.less_equal(columns, rows)
    return ops.logical_and(keep, x) if x.dtype == bool_ else ops.where(keep, x, number(x, 0.0))


def _one_hot(use: Use) -> Value:
    indices, (depth,) = use[0], use.dims(1)
    values = use[2]
    axis = use.axis(use.attribute("axis", -1), indices.rank + 1)
    places = from_front(indices, depth)
    shape = _at(axis, depth, indices.rank + 1)
    hit = ops.equal(unsqueezed(places, [axis]), ops.reshape(ops.iota(start=0, length=depth), shape=shape))
    off, on = (ops.reshape(ops.slice_(values, axis=0, start=i, length=1), shape=()) for i in (0, 1))
    return ops.where(hit, on, off)


def _eye_like(use: Use) -> Value:
    x, k = use[0], use.attribute("k", 0)
    dtype = DTYPES[use.attribute("dtype")] if use.attribute("dtype") else x.dtype
    rows = ops.reshape(ops.iota(start=k, length=x.shape[0]), shape=(x.shape[0], 1))
    return ops.equal(rows, ops.iota(start=0, length=x.shape[1])).cast(dtype)


def _depth_to_space(use: Use) -> Value:
    x, n = use[0], use.attribute("blocksize")
    b, c, h, w = x.shape
    inner = c // (n * n)
    if use.attribute("mode", "DCR") == "DCR":
        shape, order = (b, n, n, inner, h, w), (0, 3, 4, 1, 5, 2)
    else:
        shape, order = (b, inner, n, n, h, w), (0, 1, 4, 2, 5, 3)
    return ops.reshape(ops.transpose(ops.reshape(x, shape=shape), permutation=order), shape=(b, inner, h * n, w * n))


def _space_to_depth(use: Use) -> Value:
    x, n = use[0], use.attribute("blocksize")
    b, c, h, w = x.shape
    split = ops.reshape(x, shape=(b, c, h // n, n, w // n, n))
    order = (0, 3, 5, 1, 2, 4) if use.attribute("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return ops.reshape(ops.transpose(split, permutation=order), shape=(b, c * n * n, h // n, w // n))


MOVES: Handlers = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Concat": _concat,
    "Split": _split,
    "Slice": slice_of,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    "Scatter": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Pad": _pad,
    "Tile": _tile,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "Trilu": _trilu,
    "OneHot": _one_hot,
    "EyeLike": _eye_like,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
"""By op type of the standard domain."""
