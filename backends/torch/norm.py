"""RMS norm with a gradient in few passes on the CPU, where PyTorch has no kernel and keeps what each part needs."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from .products import by_hand
from .tensors import as_given
from .untyped import applied, library


def rms_norm(x: torch.Tensor, w: torch.Tensor, *, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x**2) + eps) * w over the last axis; keeps x and a number for each row."""
    if by_hand(x, w) and x.device.type == "cpu" and x.dtype == w.dtype in (torch.float32, torch.float64):
        return applied(_RMSNorm, x, w, eps)
    return functional.rms_norm(x, w.shape, w, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, eps: float) -> torch.Tensor:
        length: torch.Tensor = library.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, w, scale)
        ctx.eps = eps
        return (x * scale).mul_(w)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """With y = x s w and s the scale: dx = s (w g) - x s**3 mean(x w g), dw = sum over rows of x s g."""
        (g,), (x, w, scale) = grads, ctx.saved_tensors
        wants_x, wants_w, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():  # The backward pass is itself differentiated.
            x, w = x.view_as(x), w.view_as(w)  # One may have been made from the other.
            learning = [t for t, wants in ((x, wants_x), (w, wants_w)) if wants]
            y = functional.rms_norm(x, w.shape, w, ctx.eps)
            found = iter(torch.autograd.grad(y, learning, g, create_graph=True))
            return next(found) if wants_x else None, next(found) if wants_w else None, None
        products, of_x, of_w = (g * x).reshape(-1, x.shape[-1]), None, None
        with as_given(x):
            if wants_w:
                of_w = scale.reshape(1, -1).mm(products).squeeze(0)
            if wants_x:
                pull = products.mv(w).reshape(scale.shape).mul_(scale.pow(3)).div_(-x.shape[-1])
                of_x = (g * w).mul_(scale).addcmul_(x, pull)
        return of_x, of_w, None
