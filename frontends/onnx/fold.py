"""Arithmetic on shapes that exporters write as nodes, done while the file is read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ...ir.types import Dim, DimLike, never_negative
from .arithmetic import divided, extreme, left_over, never_equal, power, sign_of, size_of
from .equal import Sizes
from .errors import Unmapped
from .types import DTYPES
from .use import Known, Use

MOST = 1024
"""Most integers that are followed."""


def _shape(use: Use) -> Known:
    dims = use.importer.type_of(use.node.input[0]).shape
    start, end = use.attribute("start", 0), use.attribute("end", len(dims))
    return Known.of(list(dims[start:end]))


def _size(use: Use) -> Known:
    total: DimLike = 1
    for d in use.importer.type_of(use.node.input[0]).shape:
        total = total * d
    return Known.of(total)


def _given(use: Use, i: int = 0) -> Known:
    found = use.known(i)
    if found is None:
        raise Unmapped("the numbers are not known")
    return found


def _gather(use: Use) -> Known:
    data = _given(use)
    indices = np.array(use.ints(1), np.int64).reshape(_given(use, 1).array.shape)
    return Known(np.asarray(np.take(data.array, indices, axis=use.attribute("axis", 0)), object), data.dtype)


def _concat(use: Use) -> Known:
    parts = [_given(use, i) for i in range(len(use.node.input))]
    return Known(np.concatenate([p.array for p in parts], axis=use.attribute("axis", 0)), parts[0].dtype)


def _unsqueeze(use: Use) -> Known:
    data = _given(use)
    axes = use.attribute("axes") if use.version < 13 else use.ints(1)
    rank = data.array.ndim + len(axes)
    return Known(np.expand_dims(data.array, tuple(a % rank for a in axes)), data.dtype)


def _squeeze(use: Use) -> Known:
    data = _given(use)
    axes = use.axes(1, 13, data.array.ndim)
    return Known(np.asarray(np.squeeze(data.array, axes), object), data.dtype)


def _slice(use: Use) -> Known:
    data = _given(use)
    if use.version < 10:
        starts, ends = use.attribute("starts"), use.attribute("ends")
        axes, steps = use.attribute("axes", range(len(starts))), [1] * len(starts)
    else:
        starts, ends = use.ints(1), use.ints(2)
        axes = use.ints(3) if use.has(3) else range(len(starts))
        steps = use.ints(4) if use.has(4) else [1] * len(starts)
    found = data.array
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        n = found.shape[axis]
        last: int | None = end
        if step < 0 and end < -n:
            last = None
        found = found[(slice(None),) * (axis % found.ndim) + (slice(start, last, step),)]
    return Known(found, data.dtype)


def _split(use: Use) -> list[Known]:
    """ONNX Runtime writes the sizes of a shape so, which exporters gather one by one."""
    data, count = _given(use), len(use.node.output)
    axis = use.axis(use.attribute("axis", 0), data.array.ndim)
    given = use.attribute("split") if use.version < 13 else use.ints(1) if use.has(1) else None
    whole = data.array.shape[axis]
    part = -(-whole // count)
    sizes = given or [min(part, whole - i * part) for i in range(count)]
    if len(sizes) != count or sum(sizes) != whole or min(sizes) < 0:
        raise Unmapped(f"{whole} elements are not split in {list(sizes)}")
    parts = np.split(data.array, np.cumsum(sizes)[:-1], axis)
    return [Known(np.array(p, object), data.dtype) for p in parts]


def _reshape(use: Use) -> Known:
    data, shape = _given(use), list(use.ints(1))
    shape = [data.array.shape[i] if d == 0 else d for i, d in enumerate(shape)]
    return Known(data.array.reshape(shape), data.dtype)


def _transpose(use: Use) -> Known:
    data = _given(use)
    return Known(np.transpose(data.array, use.attribute("perm")), data.dtype)


def _cast(use: Use) -> Known:
    data, dtype = _given(use), DTYPES.get(use.attribute("to"))
    if dtype is None or dtype.is_float or dtype.numpy.kind not in "iub":
        raise Unmapped("not an integer type")
    if dtype.bits < 32 and not data.numbers:
        raise Unmapped("changes what the numbers are")
    if data.numbers:
        return Known(np.array(data.array.astype(data.dtype.numpy).astype(dtype.numpy).astype(object)), dtype)
    return Known(data.array, dtype)


def _same(use: Use) -> Known:
    return _given(use)


def _combined(use: Use, function: Callable[[Any, Any], Any]) -> Known:
    """Of all operands in turn."""
    parts = [_given(use, i) for i in range(len(use.node.input))]
    found = parts[0].array
    for p in parts[1:]:
        found = np.asarray(np.frompyfunc(function, 2, 1)(found, p.array), object)
    return Known(np.asarray(found, object), parts[0].dtype)


def _pointwise(function: Callable[[Any, Any], Any]) -> Callable[[Use], Known]:
    return lambda use: _combined(use, function)


def _sized(function: Callable[[Sizes, Any, Any], Any]) -> Callable[[Use], Known]:
    """The function also takes what is known of the symbols."""
    return lambda use: _combined(use, partial(function, use.importer.sizes))


def _rest(use: Use) -> Known:
    truncated = use.attribute("fmod", 0)  # Then the rest has the sign of the first operand, else that of the second.
    if truncated and not all(map(never_negative, [*_given(use).flat, *_given(use, 1).flat])):
        raise Unmapped("the rest of negative numbers")
    return _combined(use, partial(left_over, use.importer.sizes))


def _each(function: Callable[[Any], Any]) -> Callable[[Use], Known]:
    """Of every element."""

    def fold(use: Use) -> Known:
        data = _given(use)
        return Known(np.asarray(np.frompyfunc(function, 1, 1)(data.array), object), data.dtype)

    return fold


def _equal(use: Use) -> Known:
    a, b = _given(use), _given(use, 1)

    def same(x: DimLike, y: DimLike) -> bool:
        if x != y and not never_equal(x - y):
            raise Unmapped(f"whether {x} is {y} is not known")
        return bool(x == y)

    return Known(np.asarray(np.frompyfunc(same, 2, 1)(a.array, b.array), object), DTYPES[9])


def _where(use: Use) -> Known:
    c, x, y = (_given(use, i) for i in range(3))
    if not c.numbers:
        raise Unmapped("the condition is not known")
    shape = np.broadcast_shapes(c.array.shape, x.array.shape, y.array.shape)
    picked = [
        a if k else b for k, a, b in zip(*(np.broadcast_to(p.array, shape).reshape(-1) for p in (c, x, y)), strict=True)
    ]
    found = np.empty(len(picked), object)
    found[:] = picked
    return Known(found.reshape(shape), x.dtype)


def _not(use: Use) -> Known:
    data = _given(use)
    return Known(np.asarray(np.frompyfunc(lambda x: not x, 1, 1)(data.array), object), data.dtype)


def _both(use: Use) -> Known:
    """Of truth values; one that is false everywhere decides, whatever the other is."""
    parts = [use.known(i) for i in range(2)]
    known = [p for p in parts if p is not None]
    never = next((p for p in known if p.numbers and not any(p.flat)), None)
    if len(known) < 2 and never is not None and use.importer.type_of(use.node.input[parts.index(None)]).rank == 0:
        return never
    return _combined(use, lambda a, b: bool(a and b))


def _compared(function: Callable[[Any, Any], bool]) -> Callable[[Use], Known]:
    """A comparison of two, where it is sure whatever the symbols are."""

    def decide(a: DimLike, b: DimLike) -> bool:
        if isinstance(a, Dim) or isinstance(b, Dim):
            gap = a - b
            if isinstance(gap, int):
                return function(gap, 0)
            if never_negative(gap - 1):
                return function(1, 0)
            if never_negative(-1 * gap - 1):
                return function(-1, 0)
            raise Unmapped(f"how {a} and {b} compare is not known")
        return function(a, b)

    def fold(use: Use) -> Known:
        a, b = _given(use), _given(use, 1)
        return Known(np.asarray(np.frompyfunc(decide, 2, 1)(a.array, b.array), object), DTYPES[9])

    return fold


def _constant_of_shape(use: Use) -> Known:
    shape, fill = use.ints(0), use.attribute("value")
    array = np.zeros(1, np.float32) if fill is None else use.importer.tensor(fill)
    if array.dtype.kind not in "iub" or int(np.prod(shape)) > MOST:
        raise Unmapped("not a few integers")
    found = np.empty(shape, object)
    found.fill(array.reshape(()).item())
    return Known(found, use.importer.dtype(array))


def _range(use: Use) -> Known:
    start, limit, delta = (use.ints(i)[0] for i in range(3))
    if delta == 0 or abs((limit - start) / delta) > MOST:
        raise Unmapped("not a few integers")
    return Known.of(list(range(start, limit, delta)), _given(use).dtype)


def _product(use: Use) -> Known:
    data = _given(use)
    axes = use.axes(1, 18, data.array.ndim)
    if data.array.ndim != 1 or axes not in (None, (), (0,)):
        raise Unmapped("not of a vector")
    total: DimLike = 1
    for d in data.flat:
        total = total * d
    return Known.of([total] if use.attribute("keepdims", 1) else total, data.dtype)


def _reduced(since: int, function: Callable[..., Any]) -> Callable[[Use], Known]:
    """Over some axes. since: the version from which on these are an operand."""

    def fold(use: Use) -> Known:
        data = _given(use)
        axes = use.axes(1, since, data.array.ndim)
        if not data.numbers or (not axes and use.attribute("noop_with_empty_axes", 0)):
            raise Unmapped("not of numbers")
        numbers = data.array.astype(data.dtype.numpy)
        found = function(numbers, axis=axes or None, keepdims=bool(use.attribute("keepdims", 1)))
        return Known(np.asarray(found.astype(object), object), data.dtype)

    return fold


def _nonzero(use: Use) -> Known:
    data = _given(use)
    if not data.numbers or not data.array.ndim:
        raise Unmapped("not of numbers along axes")
    return Known(np.array(np.nonzero(data.array.astype(np.bool_)), object))


def _expand(use: Use) -> Known:
    data, shape = _given(use), use.ints(1)
    wanted = np.broadcast_shapes(data.array.shape, shape)
    if int(np.prod(wanted)) > MOST:
        raise Unmapped("not a few integers")
    return Known(np.broadcast_to(data.array, wanted).copy(), data.dtype)


def _one_hot(use: Use) -> Known:
    """How often to repeat along each axis, as `repeat_interleave` is written."""
    indices, depth, values = use.ints(0), use.ints(1)[0], _given(use, 2)
    shape = _given(use).array.shape
    if len(indices) * depth > MOST:
        raise Unmapped("not a few integers")
    hit = np.array([[(i + depth if i < 0 else i) == j for j in range(depth)] for i in indices], np.bool_)
    found = values.array[hit.reshape(*shape, depth).astype(np.intp)]
    return Known(np.moveaxis(found, -1, use.axis(use.attribute("axis", -1), found.ndim)), values.dtype)


FOLDS: dict[str, Callable[[Use], Known | list[Known]]] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Slice": _slice,
    "Split": _split,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Cast": _cast,
    "Identity": _same,
    "Add": _pointwise(lambda a, b: a + b),
    "Sub": _pointwise(lambda a, b: a - b),
    "Mul": _pointwise(lambda a, b: a * b),
    "Div": _sized(divided),
    "Mod": _rest,
    "Pow": _pointwise(power),
    "Max": _sized(partial(extreme, largest=True)),
    "Min": _sized(partial(extreme, largest=False)),
    "Neg": _each(lambda d: -1 * d),
    "Abs": _each(size_of),
    "Sign": _each(sign_of),
    "Equal": _equal,
    "Less": _compared(lambda a, b: a < b),
    "LessOrEqual": _compared(lambda a, b: a <= b),
    "Greater": _compared(lambda a, b: a > b),
    "GreaterOrEqual": _compared(lambda a, b: a >= b),
    "And": _both,
    "Or": _pointwise(lambda a, b: bool(a or b)),
    "Not": _not,
    "Where": _where,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "ReduceProd": _product,
    "ReduceMax": _reduced(18, np.max),
    "ReduceMin": _reduced(18, np.min),
    "NonZero": _nonzero,
    "Expand": _expand,
    "OneHot": _one_hot,
}
"""What nodes of the standard domain give whose operands are known, by op type."""
