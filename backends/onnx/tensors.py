"""Between the IR's types and tensors and those of ONNX: element types, dimension names, lazy initializers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np
import onnx_ir

from ...ir.types import Dim, DimLike, DType
from ...ir.weights import Array, Tensor

ELEMENT_TYPES = {
    DType.f64: onnx_ir.DataType.DOUBLE,
    DType.f32: onnx_ir.DataType.FLOAT,
    DType.f16: onnx_ir.DataType.FLOAT16,
    DType.bf16: onnx_ir.DataType.BFLOAT16,
    DType.i64: onnx_ir.DataType.INT64,
    DType.i32: onnx_ir.DataType.INT32,
    DType.i8: onnx_ir.DataType.INT8,
    DType.u8: onnx_ir.DataType.UINT8,
    DType.i4: onnx_ir.DataType.INT4,
    DType.u4: onnx_ir.DataType.UINT4,
    DType.bool_: onnx_ir.DataType.BOOL,
    DType.i16: onnx_ir.DataType.INT16,
    DType.u16: onnx_ir.DataType.UINT16,
    DType.u32: onnx_ir.DataType.UINT32,
    DType.u64: onnx_ir.DataType.UINT64,
    DType.f8e4m3fn: onnx_ir.DataType.FLOAT8E4M3FN,
    DType.f8e5m2: onnx_ir.DataType.FLOAT8E5M2,
    DType.f8e4m3fnuz: onnx_ir.DataType.FLOAT8E4M3FNUZ,
    DType.f8e5m2fnuz: onnx_ir.DataType.FLOAT8E5M2FNUZ,
    DType.f8e8m0: onnx_ir.DataType.FLOAT8E8M0,
    DType.f4e2m1: onnx_ir.DataType.FLOAT4E2M1,
    DType.u2: onnx_ir.DataType.UINT2,
    DType.i2: onnx_ir.DataType.INT2,
    DType.text: onnx_ir.DataType.STRING,
}

_NAMES = {
    "B": "batch_size",
    "S": "sequence_length",
    "P": "past_sequence_length",
    "U": "decoder_sequence_length",
}
"""The names the ecosystem uses for the symbols that models declare."""

_CHUNK = 16 << 20


def dim_names(symbols: Iterable[str]) -> dict[str, str]:
    """A readable name for each symbol; distinct symbols get distinct names."""
    found = set(symbols)
    return {s: _NAMES[s] if s in _NAMES and _NAMES[s] not in found else s for s in sorted(found)}


def onnx_dim(d: DimLike, names: Mapping[str, str]) -> int | str:
    """A dimension as ONNX writes it: a number, a name, or an expression such as `past_sequence_length + ...`."""
    if not isinstance(d, Dim):
        return d
    text = ""
    for monomial, coefficient in sorted(d.terms, key=lambda t: (t[1] < 0, not t[0], t[0])):
        sign = " - " if coefficient < 0 else " + "
        size = [str(abs(coefficient))] if abs(coefficient) != 1 or not monomial else []
        factors = "*".join([*size, *(names.get(s, s) for s in monomial)])
        text += sign + factors if text else ("-" if coefficient < 0 else "") + factors
    return text


def onnx_shape(shape: Iterable[DimLike], names: Mapping[str, str]) -> onnx_ir.Shape:
    return onnx_ir.Shape([onnx_dim(d, names) for d in shape])


class WeightTensor(onnx_ir.LazyTensor):
    """An initializer over a lazy tensor of the IR: read when written, in pieces, and never kept."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        dtype = ELEMENT_TYPES[tensor.dtype]
        super().__init__(self._read, dtype, onnx_ir.Shape(tensor.shape), cache=False, name=name)
        self.tensor = tensor

    def _read(self) -> onnx_ir.Tensor[Any]:
        return onnx_ir.Tensor(self.tensor.numpy(), dtype=self.dtype, name=self.name)

    def tofile(self, file: BinaryIO) -> None:
        """Write the bytes; a transposed or sliced view is made contiguous a piece at a time."""
        array = self.tensor.numpy()
        if self.tensor.dtype.bits < 8:
            file.write(onnx_ir.Tensor(array, dtype=self.dtype).tobytes())
            return
        write_array(file, array)


def write_array(file: BinaryIO, array: Array) -> None:
    """Little-endian bytes in row-major order, at most 16 MB copied at a time."""
    if array.ndim == 0:
        file.write(array.tobytes())
        return
    row = max(1, array.dtype.itemsize * math.prod(array.shape[1:]))
    step = max(1, _CHUNK // row)
    for start in range(0, len(array), step):
        piece = np.ascontiguousarray(array[start : start + step])
        file.write(piece.reshape(-1).view(np.uint8).data)
