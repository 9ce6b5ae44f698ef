"""Ops of a user, outside the package: nothing but `op(...)` makes them known. Imported by test_own_op.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from monograph.ir import Op, TensorType, Value, op, ops
from monograph.ir.errors import check
from monograph.passes.pattern import Rewrite


class Mish(Op):
    """x * tanh(log(1 + e**x)): nothing but a body. (Misra 2019)"""

    elementwise = True

    def infer(self, x: Value) -> TensorType:
        return x.type

    def body(self, x: Value) -> Value:
        return x * ops.tanh(ops.log(ops.exp(x) + 1.0))


class HardSwish(Op):
    """x * min(max(x + 3, 0), 6) / 6, said to each backend in one go. (Howard et al. 2019)"""

    elementwise = True

    def infer(self, x: Value) -> TensorType:
        return x.type

    def body(self, x: Value) -> Value:
        most = ops.constant(value=-6.0, dtype=x.dtype)
        part = ops.maximum(x + 3.0, ops.constant(value=0.0, dtype=x.dtype))
        return x * -ops.maximum(-part, most) / 6.0

    def torch(self, torch: Any, x: Any) -> Any:
        return torch.nn.functional.hardswish(x)

    def onnx(self, op: Any, x: Any) -> Any:
        return op.HardSwish(x)


class FloorTo(Op):
    """The largest multiple of `step` that is not above x: a primitive with an attribute, and without a gradient."""

    elementwise = True

    def infer(self, x: Value, *, step: float = 0.5) -> TensorType:
        check(step > 0, f"step is {step}, expected a positive number")
        return x.type

    def numpy(self, x: Any, *, step: float) -> Any:
        return (np.floor(x / step) * step).astype(x.dtype)

    def torch(self, torch: Any, x: Any, *, step: float) -> Any:
        return torch.floor(x / step) * step

    def onnx(self, op: Any, x: Any, *, step: float) -> Any:
        size = op.constant(np.array(step, x.dtype.numpy))
        return op.Mul(op.Floor(op.Div(x, size)), size)


class Halves(Op):
    """The first and the last half of the channels: two outputs."""

    def infer(self, x: Value) -> tuple[TensorType, TensorType]:
        check(isinstance(x.shape[-1], int) and x.shape[-1] % 2 == 0, f"x has {x.shape[-1]} channels, expected even")
        half = TensorType(x.dtype, (*x.shape[:-1], x.shape[-1] // 2))  # type: ignore[operator]
        return half, half

    def body(self, x: Value) -> tuple[Value, Value]:
        half = x.shape[-1] // 2  # type: ignore[operator]
        first, last = (ops.slice_(x, axis=-1, start=i * half, length=half) for i in (0, 1))
        return first, last


class Gate(Op):
    """mish(linear(x, w)) * hard_swish(linear(x, v)): a composite over ops of a user, with parameters."""

    def infer(self, x: Value, w: Value, v: Value) -> TensorType:
        return TensorType(x.dtype, (*x.shape[:-1], w.shape[0]))

    def body(self, x: Value, w: Value, v: Value) -> Value:
        return mish(ops.linear(x, w)) * hard_swish(ops.linear(x, v))


mish, hard_swish, floor_to, halves, gate = op(Mish), op(HardSwish), op(FloorTo), op(Halves), op(Gate)


class MishSpelledOut(Rewrite):
    """Mish in primitives => mish."""

    def before(self, x: Value) -> Value:
        return x * ops.tanh(ops.log(ops.exp(x) + 1.0))

    def after(self, x: Value) -> Value:
        return mish(x)
