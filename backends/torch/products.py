"""Linear layers through the faster of the two libraries that PyTorch carries for float32 products on a CPU.

PyTorch sends them to MKL, which holds back on processors that are not Intel's; oneDNN does not. On an AMD EPYC with
AVX-512 it computes x @ w.T and grad @ w at 210 to 220 GFLOP/s where MKL gives 170 to 195; grad.T @ x is alike in both.
It makes a kernel for each shape and keeps it, 2 MB each: that is for calls with few shapes only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.autograd import forward_ad

from .tensors import as_given
from .untyped import applied, library

_forward_ad: Any = forward_ad
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _onednn_is_faster() -> bool:
    """Decided by the vendor of the CPU, not by the clock, so that a run repeats to the bit."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return not torch.backends.mkl.is_available() or _vendor() == "AuthenticAMD"


def _vendor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


ONEDNN = _onednn_is_faster()
"""Whether float32 products on this CPU go to oneDNN."""


def linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, *, transposed: bool) -> torch.Tensor:
    """x [..., in] @ w.T + b -> [..., out], w [out, in]; `transposed`: w is [in, out]."""
    if _suits(x) and _suits(w) and not torch.is_autocast_enabled("cpu"):
        return applied(_Linear, x, w, b, transposed)
    return torch.nn.functional.linear(x, w.t() if transposed else w, b)


def product(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., K] @ w.T + b, w [N, K] in any layout -> [..., N], without a gradient."""
    return _onednn(x, w, b) if _suits(x) and _suits(w) else plain_product(x, w, b)


def plain_product(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """The same by PyTorch's own choice of library, for shapes that change."""
    return torch.nn.functional.linear(x, w, b)


def by_hand(*tensors: torch.Tensor) -> bool:
    """Whether a step may have an autograd function of ours: who compiles, traces or transforms wants to see what it
    does, forward derivatives too, and tensors of other classes (sharded, functional) have rules of their own.
    """
    plain = all(type(t) in _PLAIN for t in tensors) and not torch.compiler.is_compiling() and not transformed()
    return plain and not library.jit.is_tracing() and _forward_ad._current_level < 0


def _suits(x: torch.Tensor) -> bool:
    ours = ONEDNN and type(x) in _PLAIN and not transformed(x)
    return ours and x.dtype == torch.float32 and x.device.type == "cpu"


def transformed(*tensors: torch.Tensor) -> bool:
    """Inside torch.func (grad, vmap, jvp), or for a batch of gradients: there are no rules for an op of oneDNN, nor for
    one that writes into what it is given.
    """
    if torch.compiler.is_compiling():
        return False
    of_func = library._C._functorch
    return library._C._are_functorch_transforms_active() or any(map(of_func.is_legacy_batchedtensor, tensors))


def _onednn(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    if torch.compiler.is_compiling():
        return _opaque(x, w, b)
    return torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "")


@library.library.custom_op("monograph::linear", mutates_args=())
def _opaque(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    """The same for torch.compile, which would want constant weights for an op of oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "")


@_opaque.register_fake
def _(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], w.shape[0]))


def _differentiable_product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x @ w.T, with a gradient where a backward pass is itself differentiated."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return linear(x, w, None, transposed=False)
    return _onednn(x, w, None)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, transposed: bool) -> torch.Tensor:
        wants_x, wants_w = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if wants_w else None, w if wants_x else None)
        ctx.shape, ctx.transposed = x.shape, transposed
        return _onednn(x, w.t() if transposed else w, b)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,), (x, w) = grads, ctx.saved_tensors
        wants_x, wants_w, wants_b, _ = ctx.needs_input_grad
        rows, of_x, of_w = grad.reshape(-1, grad.shape[-1]), None, None
        with as_given(grad):
            if wants_x:
                of_x = _differentiable_product(rows, w if ctx.transposed else w.t()).reshape(ctx.shape)
            if wants_w:
                inputs = x.reshape(-1, x.shape[-1])
                of_w = inputs.t() @ rows if ctx.transposed else rows.t() @ inputs
        return of_x, of_w, rows.sum(0) if wants_b else None, None
