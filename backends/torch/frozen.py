"""A linear layer over 8-bit codes that keeps no float weight for the backward pass. (Dettmers et al. 2023)"""

from __future__ import annotations

from typing import Any

import torch

from ...ir import backward_reads as reads
from ...ir import ops
from ...ir.graph import Value
from ...ir.op import Op
from ...ir.shard_rules import needs_all
from ...ir.types import TensorType, i8
from ...passes.freeze import multiplied_out
from ...passes.pattern import Rewrite
from .tensors import autocast_dtype
from .untyped import applied


class FrozenLinear(Op):
    """linear(x, cast(codes) * scales, b)."""

    backward_reads = reads.nothing
    shard = needs_all

    def infer(
        self, x: Value, codes: Value, scales: Value, b: Value | None = None, *, transposed: bool = False
    ) -> TensorType:
        return TensorType(x.dtype, (*x.shape[:-1], codes.shape[1] if transposed else codes.shape[0]))

    def body(self, x: Value, codes: Value, scales: Value, b: Value | None = None, *, transposed: bool = False) -> Value:
        return ops.linear(x, multiplied_out(codes, scales), b, transposed=transposed)

    def torch(self, torch: Any, x: Any, codes: Any, scales: Any, b: Any = None, *, transposed: bool = False) -> Any:
        y = x.tracer.create_proxy("call_function", frozen_linear, (x, codes, scales, transposed), {})
        return y if b is None else y + b


FROZEN = FrozenLinear()


class LinearOverCodes(Rewrite):
    """linear(x, cast(codes) * scales, b) => one op that multiplies the codes out again when the gradient needs them."""

    def before(self, x: Value, codes: Value, scales: Value, b: Value | None = None, *, transposed: bool) -> Value:
        return ops.linear(x, multiplied_out(codes, scales), b, transposed=transposed)

    def when(self, **bound: Any) -> bool | str:
        codes, scales = bound["codes"], bound["scales"]
        return (codes.is_param and scales.is_param and codes.dtype == i8) or f"{codes!r} holds no codes"

    def after(self, x: Value, codes: Value, scales: Value, b: Value | None = None, *, transposed: bool) -> Value:
        return x.graph.add(FROZEN, (x, codes, scales, b), {"transposed": transposed})[0]


def frozen_linear(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, transposed: bool) -> torch.Tensor:
    """x @ (codes * scales).T; under autocast in its dtype. Scales that want a gradient get it the plain way."""
    if scales.requires_grad and torch.is_grad_enabled():
        w = codes.to(scales.dtype) * scales
        return torch.nn.functional.linear(x, w.t() if transposed else w)
    return applied(_OverCodes, x.to(autocast_dtype(x) or x.dtype), codes, scales, transposed)


class _OverCodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, transposed: bool) -> torch.Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.transposed = transposed
        w = codes.to(x.dtype) * scales.to(x.dtype)
        return x @ (w if transposed else w.t())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (grad,), (codes, scales) = grads, ctx.saved_tensors
        w = codes.to(grad.dtype) * scales.to(grad.dtype)
        return grad @ (w.t() if ctx.transposed else w), None, None, None
