"""Element types."""

from __future__ import annotations

import enum
from typing import Any

import ml_dtypes
import numpy as np

from .errors import MonographError

_finfo: Any = ml_dtypes.finfo


class DType(enum.Enum):
    """Element type; the value is the name used in text and in error messages.

    Those behind bool are of imported graphs: foreign nodes compute with them, and casts lead to the others.
    """

    f64 = "f64"
    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    i64 = "i64"
    i32 = "i32"
    i8 = "i8"
    u8 = "u8"
    i4 = "i4"
    u4 = "u4"
    bool_ = "bool"
    i16 = "i16"
    u16 = "u16"
    u32 = "u32"
    u64 = "u64"
    f8e4m3fn = "f8e4m3fn"
    f8e5m2 = "f8e5m2"
    f8e4m3fnuz = "f8e4m3fnuz"
    f8e5m2fnuz = "f8e5m2fnuz"
    f8e8m0 = "f8e8m0"
    f4e2m1 = "f4e2m1"
    u2 = "u2"
    i2 = "i2"
    text = "str"

    @property
    def numpy(self) -> np.dtype[Any]:
        return _NUMPY[self]

    @property
    def bits(self) -> int:
        """Bits of one element in memory (those below 8 are packed into bytes)."""
        return _NARROW.get(self, self.numpy.itemsize * 8)

    @property
    def lowest(self) -> float:
        """The most negative finite number of a floating-point type."""
        return float(np.nextafter(self.numpy.type("-inf"), self.numpy.type(0)))

    def is_normal(self, number: float) -> bool:
        """Whether a floating-point type holds a number to its full precision: not zero, and of a size it has."""
        info = _finfo(self.numpy)
        return float(info.smallest_normal) <= abs(number) <= float(info.max)

    @property
    def is_float(self) -> bool:
        return self in (DType.f64, DType.f32, DType.f16, DType.bf16)

    @staticmethod
    def of(dtype: Any) -> DType:
        """The DType of a NumPy dtype. Raises MonographError if the IR has none."""
        found = _FROM_NUMPY.get(np.dtype(dtype))
        if found is None:
            raise MonographError(f"element type {np.dtype(dtype)} has no counterpart in the IR")
        return found

    def __str__(self) -> str:
        return self.value


_NUMPY: dict[DType, np.dtype[Any]] = {
    DType.f64: np.dtype(np.float64),
    DType.f32: np.dtype(np.float32),
    DType.f16: np.dtype(np.float16),
    DType.bf16: np.dtype(ml_dtypes.bfloat16),
    DType.i64: np.dtype(np.int64),
    DType.i32: np.dtype(np.int32),
    DType.i8: np.dtype(np.int8),
    DType.u8: np.dtype(np.uint8),
    DType.i4: np.dtype(ml_dtypes.int4),
    DType.u4: np.dtype(ml_dtypes.uint4),
    DType.bool_: np.dtype(np.bool_),
    DType.i16: np.dtype(np.int16),
    DType.u16: np.dtype(np.uint16),
    DType.u32: np.dtype(np.uint32),
    DType.u64: np.dtype(np.uint64),
    DType.f8e4m3fn: np.dtype(ml_dtypes.float8_e4m3fn),
    DType.f8e5m2: np.dtype(ml_dtypes.float8_e5m2),
    DType.f8e4m3fnuz: np.dtype(ml_dtypes.float8_e4m3fnuz),
    DType.f8e5m2fnuz: np.dtype(ml_dtypes.float8_e5m2fnuz),
    DType.f8e8m0: np.dtype(ml_dtypes.float8_e8m0fnu),
    DType.f4e2m1: np.dtype(ml_dtypes.float4_e2m1fn),
    DType.u2: np.dtype(ml_dtypes.uint2),
    DType.i2: np.dtype(ml_dtypes.int2),
    DType.text: np.dtype(np.object_),
}
_NARROW = {DType.i4: 4, DType.u4: 4, DType.f4e2m1: 4, DType.i2: 2, DType.u2: 2}
_FROM_NUMPY = {v: k for k, v in _NUMPY.items()}

f64, f32, f16, bf16 = DType.f64, DType.f32, DType.f16, DType.bf16
i64, i32, i8, u8, bool_ = DType.i64, DType.i32, DType.i8, DType.u8, DType.bool_
