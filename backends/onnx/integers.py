"""Products of integers: activations rounded to 8 bits as they come, each row by its own largest number.

One scale a row and not one for all (DynamicQuantizeLinear): a row then does not depend on its neighbours, and one
large row costs the others nothing. Measured over 512 tokens: a quarter slower, with a fifth of the error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ir.errors import check
from ...ir.graph import Value
from ...ir.op import Op, op
from ...ir.shard_rules import needs_all
from ...ir.types import DimLike, DType, TensorType, f32, i8, u8

_ZERO = 128
"""The code of 0: unsigned codes are what kernels multiply by signed ones fastest."""
_LEVELS = 127
_LEAST = 1e-30
"""The least scale, for rows of zeros."""


class OnnxRowScales(Op):
    """max |x| / 127 over each row: x f32 [..., K] -> [..., 1]."""

    shard = needs_all

    def flops(self, x: Value) -> DimLike:
        return x.type.elements

    def infer(self, x: Value) -> TensorType:
        check(x.dtype == f32, f"x is {x.type}, expected f32")
        return TensorType(f32, (*x.shape[:-1], 1))

    def numpy(self, x: Any) -> Any:
        return np.maximum(np.abs(x).max(-1, keepdims=True, initial=0) / np.float32(_LEVELS), np.float32(_LEAST))

    def onnx(self, op: Any, x: Any) -> Any:
        largest = op.ReduceMax(op.Abs(x), op.constant(np.array([-1], np.int64)), keepdims=1)
        scales = op.Mul(largest, op.constant(np.array(1 / _LEVELS, np.float32)))
        return op.Max(scales, op.constant(np.array(_LEAST, np.float32)))


class OnnxRowCodes(Op):
    """x / scale as the nearest codes around 128: x f32 [..., K], scales [..., 1] -> u8."""

    shard = needs_all

    def flops(self, x: Value, scales: Value) -> DimLike:
        return 2 * x.type.elements

    def infer(self, x: Value, scales: Value) -> TensorType:
        check(scales.type == TensorType(x.dtype, (*x.shape[:-1], 1)), f"scales is {scales.type}, x {x.type}")
        return x.type.with_dtype(u8)

    def numpy(self, x: Any, scales: Any) -> Any:
        return np.clip(np.rint(x / scales) + _ZERO, 0, 255).astype(np.uint8)

    def onnx(self, op: Any, x: Any, scales: Any) -> Any:
        one, zero = op.constant(np.array(1, np.float32)), op.constant(np.array(_ZERO, np.uint8))
        return op.QuantizeLinear(op.Div(x, scales), one, zero)


class OnnxIntegerLinear(Op):
    """scale * (code - 128) @ (each * w): codes u8 [..., K], scales [..., 1], w i8 [K,N], each [N] -> f32 [..., N]."""

    heavy = True
    shard = needs_all

    def flops(self, codes: Value, scales: Value, w: Value, each: Value) -> DimLike:
        return 2 * codes.type.elements * w.shape[1]

    def infer(self, codes: Value, scales: Value, w: Value, each: Value) -> TensorType:
        check(codes.dtype == u8 and w.dtype == i8 and w.rank == 2, f"codes is {codes.type} and w {w.type}")
        check(codes.shape[-1] == w.shape[0], f"last axis of codes is {codes.shape[-1]} but w has {w.shape[0]} rows")
        check(each.type == TensorType(f32, (w.shape[1],)), f"each is {each.type}, but w is {w.type}")
        return TensorType(f32, (*codes.shape[:-1], w.shape[1]))

    def numpy(self, codes: Any, scales: Any, w: Any, each: Any) -> Any:
        sums = np.matmul(codes.astype(np.int32) - _ZERO, w.astype(np.int32))
        return sums.astype(np.float32) * each * scales

    def onnx(self, op: Any, codes: Any, scales: Any, w: Any, each: Any) -> Any:
        sums = op.MatMulInteger(codes, w, op.constant(np.array(_ZERO, np.uint8)))
        return op.Mul(op.Mul(op.Cast(sums, to=op.element_type(DType.f32)), each), scales)


row_scales, row_codes, integer_linear = op(OnnxRowScales), op(OnnxRowCodes), op(OnnxIntegerLinear)
