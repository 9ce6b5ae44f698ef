"""Element types."""

from __future__ import annotations

import enum
from typing import Any

import ml_dtypes
import numpy as np

from .errors import MonographError

_finfo: Any = ml_dtypes.finfo


class DType(enum.Enum):
    """Element type; the value is the name used in text and in error messages."""

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

    @property
    def numpy(self) -> np.dtype[Any]:
        return _NUMPY[self]

    @property
    def bits(self) -> int:
        """Bits of one element in memory (4-bit types are packed two to a byte)."""
        return 4 if self in (DType.i4, DType.u4) else self.numpy.itemsize * 8

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
}
_FROM_NUMPY = {v: k for k, v in _NUMPY.items()}

f64, f32, f16, bf16 = DType.f64, DType.f32, DType.f16, DType.bf16
i64, i32, i8, u8, bool_ = DType.i64, DType.i32, DType.i8, DType.u8, DType.bool_
