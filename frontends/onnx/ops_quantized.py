"""Quantized operators: weights become encodings, the rest arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir import ops
from ...ir.encoded import Encoded
from ...ir.encodings import LAYOUTS, Encoding
from ...ir.graph import Value
from ...ir.tensors import Array, Tensor
from ...ir.types import DType, TensorType, f32, i32, u8
from .errors import Unmapped
from .ops_reduce import matmul, over
from .use import Handlers, Use


class Joined(Tensor):
    """Lines of an encoding that are put together when they are read. codes, scales, zeros: [..., blocks, n]."""

    def __init__(self, encoding: Encoding, shape: Sequence[int], make: Any) -> None:
        self.encoding, self.make = encoding, make
        self.type = TensorType(u8, encoding.stored_shape(tuple(shape)))

    def numpy(self) -> Array:
        codes, scales, zeros = self.make()
        return self.encoding.joined(codes, scales, None, zeros)


def weight(use: Use, i: int) -> Tensor | None:
    """The initializer that is operand `i`, if it is one."""
    return use.importer.tensors.get(use.node.input[i]) if use.has(i) else None


def encoded(use: Use, i: int, encoding: Encoding, shape: tuple[int, ...], dtype: DType, make: Any) -> Value:
    """A parameter that is stored in an encoding, under the name of operand `i`."""
    type = TensorType(dtype, shape, encoding)
    path = use.node.input[i]
    if path in use.importer.weights:
        same = use.importer.weights[path].type == type
        if not same:
            raise Unmapped(f"{path} is read in two ways")
        return use.importer.graph.params[path]
    return use.importer.parameter(path, Encoded(Joined(encoding, shape, make), type))


def _dequantize(use: Use) -> Value:
    stored, scale = weight(use, 0), weight(use, 1)
    if stored is not None and scale is not None:
        try:
            return _as_encoding(use, stored, scale)
        except Unmapped:
            return _arithmetic(use)
    return _arithmetic(use)


def _as_encoding(use: Use, stored: Tensor, scale: Tensor) -> Value:
    """A matrix with a scale for each row or column, or for each block, as an encoded parameter."""
    shape, zero = stored.shape, weight(use, 2)
    if len(shape) != 2 or stored.dtype not in _LAYOUTS or (use.has(2) and zero is None) or not scale.dtype.is_float:
        raise Unmapped(f"{stored.type} with scales {scale.type}")
    axis, block = use.axis(use.attribute("axis", 1), 2), use.attribute("block_size", 0)
    along = axis if block else 1 - axis
    if not scale.shape or scale.shape == (1,):
        along, block = 1, 0
    elif not block and scale.shape != (shape[axis],):
        raise Unmapped(f"scales {scale.type} along axis {axis} of {stored.type}")
    if block and shape[along] % block:
        raise Unmapped(f"blocks of {block} do not divide {shape[along]}")
    name, shift = _LAYOUTS[stored.dtype]
    lines = shape[1 - along]
    zeros = None if zero is None else zero.numpy().astype(np.int16)
    plain = zeros is None or bool((zeros == zeros.reshape(-1)[0]).all() and zeros.reshape(-1)[0] + shift == _zero(name))
    if zeros is None and shift != _zero(name):
        zeros, plain = np.zeros((), np.int16), False
    e = LAYOUTS[name].by_block(block or 0, zeros=not plain, scale=scale.dtype).along(along, 2)

    def by_line(x: Array) -> Array:
        """Numbers as [lines, blocks, 1]."""
        if x.size == 1:
            return np.broadcast_to(x.reshape(1, 1, 1), (lines, 1, 1))
        return (x if along == 1 else x.T).reshape(lines, -1, 1)

    def make() -> tuple[Array, Array, Array | None]:
        numbers = stored.numpy().astype(np.int16) + shift
        rows = numbers if along == 1 else numbers.T
        codes = rows.astype(e.codes_type.numpy).reshape(lines, -1, block or shape[along])
        own = None if plain or zeros is None else (by_line(zeros) + shift).astype(e.codes_type.numpy)
        return np.ascontiguousarray(codes), by_line(scale.numpy()), own

    return encoded(use, 0, e, shape, scale.dtype, make)


_LAYOUTS = {DType.i8: ("int8", 0), DType.u8: ("int8", -128), DType.i4: ("int4", 8), DType.u4: ("int4", 0)}
"""Layout and what is added to the stored integers to get its codes."""


def _zero(layout: str) -> int:
    return LAYOUTS[layout].zero


def _spread(v: Value, x: Value, axis: int, block: int) -> Value:
    """Scales or zero points of an axis, or of blocks along it, in the shape of x."""
    if block:
        parts = v.shape[axis]
        wide = ops.reshape(v, shape=(*v.shape[: axis + 1], 1, *v.shape[axis + 1 :]))
        wide = ops.expand(wide, shape=(*v.shape[: axis + 1], block, *v.shape[axis + 1 :]))
        y = ops.reshape(wide, shape=(*v.shape[:axis], parts * block, *v.shape[axis + 1 :]))
        return y if y.shape[axis] == x.shape[axis] else ops.slice_(y, axis=axis, start=0, length=x.shape[axis])
    if v.rank == 0 or v.shape == (1,):
        return ops.reshape(v, shape=())
    if v.rank != 1:
        raise Unmapped(f"scales of {v.type}")
    return ops.reshape(v, shape=tuple(v.shape[0] if i == axis else 1 for i in range(x.rank)))


def _arithmetic(use: Use) -> Value:
    x, scale, zero = use[0], use[1], use.get(2)
    kinds = (x.dtype.numpy.kind, scale.dtype.is_float)
    if (kinds[0] not in "iu" and x.dtype not in (DType.i4, DType.u4)) or not kinds[1]:
        raise Unmapped(f"{x.type} with scales {scale.type}")
    axis, block = use.axis(use.attribute("axis", 1), x.rank) if x.rank else 0, use.attribute("block_size", 0)
    y = x.cast(f32)
    if zero is not None:
        y = y - _spread(zero, x, axis, block).cast(f32)
    y = y * _spread(scale if scale.dtype == f32 else scale.cast(f32), x, axis, block)
    to = use.attribute("output_dtype", 0)
    if to and to not in (1,):
        raise Unmapped(f"it gives element type {to}")
    return y if scale.dtype == f32 else y.cast(scale.dtype)


_BOUNDS = {DType.u8: (0, 255), DType.i8: (-128, 127), DType.u16: (0, 65535), DType.i16: (-32768, 32767)}


def _quantize(use: Use) -> Value:
    x, scale, zero = use[0], use[1], use.get(2)
    dtype = u8 if zero is None else zero.dtype
    if dtype not in _BOUNDS or x.dtype != f32 or scale.dtype != f32 or use.attribute("output_dtype", 0):
        raise Unmapped(f"{x.type} to {dtype}")
    axis, block = use.axis(use.attribute("axis", 1), x.rank) if x.rank else 0, use.attribute("block_size", 0)
    y = ops.round(x / _spread(scale, x, axis, block))
    y = y if zero is None else y + _spread(zero, x, axis, block).cast(f32)
    low, high = _BOUNDS[dtype]
    return ops.minimum(ops.maximum(y, float(low)), float(high)).cast(dtype)


def _dynamic(use: Use) -> tuple[Value, Value, Value]:
    """DynamicQuantizeLinear: u8 over the range of all numbers, which has 0 in it."""
    x = use[0]
    axes = range(x.rank)
    high = ops.maximum(over(x, axes, ops.max, keep=False), 0.0)
    low = ops.minimum(over(x, axes, ops.min, keep=False), 0.0)
    scale = (high - low) / 255.0
    safe = ops.where(ops.equal(scale, ops.constant(value=0.0, dtype=x.dtype)), 1.0, scale)
    zero = ops.round(ops.minimum(ops.maximum(0.0 - low / safe, 0.0), 255.0))
    y = ops.minimum(ops.maximum(ops.round(x / safe) + zero, 0.0), 255.0)
    return y.cast(u8), scale, zero.cast(u8)


def _matmul_integer(use: Use) -> Value:
    a, b = use[0].cast(i32), use[1].cast(i32)
    for i, axis in ((2, -2), (3, -1)):
        zero = use.get(i)
        if zero is None:
            continue
        wide = zero.cast(i32)
        if wide.rank == 1 and wide.shape != (1,):
            wide = ops.reshape(wide, shape=(wide.shape[0], 1)) if axis == -2 else wide
        elif wide.rank == 1:
            wide = ops.reshape(wide, shape=())
        a, b = (a - wide, b) if i == 2 else (a, b - wide)
    return matmul(a, b)


def _in_blocks(use: Use, stored: int, scale: int, zero: int, shape: tuple[int, int], block: int, bits: int) -> Encoding:
    """The encoding of a matrix [N,K] in blocks along K, whose codes are packed into bytes."""
    parts = [weight(use, i) for i in (stored, scale)]
    zeros = weight(use, zero)
    odd = None in parts or (use.has(zero) and zeros is None) or bits not in (2, 4, 8) or shape[1] % block
    if odd or parts[0] is None or parts[1] is None or parts[0].dtype != u8 or not parts[1].dtype.is_float:
        raise Unmapped(f"a weight of {bits} bits in blocks of {block} that is computed, of other types or not whole")
    if zeros is not None and zeros.dtype != u8:
        raise Unmapped(f"zero points of {zeros.dtype}")
    return LAYOUTS[f"int{bits}"].by_block(block, zeros=zeros is not None or bits == 8, scale=parts[1].dtype)


def _unpacked(x: Array, bits: int, count: int) -> Array:
    """The codes in bytes [..., n], the first of a byte in its lowest bits."""
    parts = [x >> s & ((1 << bits) - 1) for s in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(*x.shape[:-1], -1)[..., :count].astype(np.int16)


def _packed(use: Use, at: tuple[int, int, int], shape: tuple[int, int], dtype: DType) -> Value:
    """A packed matrix as an encoded parameter. at: operands that are its codes, scales and zero points."""
    block, bits = use.attribute("block_size"), use.attribute("bits", 4)
    e = _in_blocks(use, *at, shape, block, bits)
    stored, scale, zero = (weight(use, i) for i in at)
    assert stored is not None and scale is not None
    n, blocks, shift = shape[0], shape[1] // block, -128 if bits == 8 else 0

    def make() -> tuple[Array, Array, Array | None]:
        codes = _unpacked(stored.numpy().reshape(n, blocks, -1), bits, block) + shift
        zeros: Array | None = None
        if zero is not None:
            zeros = _unpacked(zero.numpy().reshape(n, -1), bits, blocks)[..., None] + shift
        elif bits == 8:
            zeros = np.zeros((n, blocks, 1), np.int16)
        own = None if zeros is None else zeros.astype(e.codes_type.numpy)
        return codes.astype(e.codes_type.numpy), scale.numpy().reshape(n, blocks, 1), own

    return encoded(use, at[0], e, shape, dtype, make)


def _matmul_nbits(use: Use) -> Value:
    """MatMulNBits: a linear layer over a weight [N,K] in blocks along K."""
    if use.has(4) or use.attribute("weight_prepacked", 0):
        raise Unmapped("its weight is reordered")
    shape = use.attribute("N"), use.attribute("K")
    return ops.linear(use[0], _packed(use, (1, 2, 3), shape, use[0].dtype), use.get(5))


def _gather_quantized(use: Use) -> Value:
    """GatherBlockQuantized: rows of a table in blocks along its last axis."""
    stored, scale = weight(use, 0), weight(use, 2)
    plain = use.attribute("gather_axis", 0) == 0 and use.attribute("quantize_axis", 1) in (1, -1)
    if stored is None or scale is None or len(stored.shape) != 2 or not plain:
        raise Unmapped("a table that is computed, or other axes than rows in blocks along the last")
    width = stored.shape[1] * 8 // use.attribute("bits", 4)
    table = _packed(use, (0, 2, 3), (stored.shape[0], width), scale.dtype)
    return ops.gather(table, use[1], axis=0)


QUANTIZED: Handlers = {
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
    "DynamicQuantizeLinear": _dynamic,
    "MatMulInteger": _matmul_integer,
}
"""By op type of the standard domain."""
MICROSOFT_QUANTIZED: Handlers = {
    "DequantizeLinear": _dequantize,
    "QuantizeLinear": _quantize,
    "MatMulNBits": _matmul_nbits,
    "GatherBlockQuantized": _gather_quantized,
}
"""By op type of the domain com.microsoft."""
