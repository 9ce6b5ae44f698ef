"""Element types and arrays across the border between the IR (NumPy) and PyTorch."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch

from ...ir.errors import LoweringError
from ...ir.tensors import Array, Tensor
from ...ir.types import DType, TensorType
from .untyped import library

_TORCH = {
    DType.f64: torch.float64,
    DType.f32: torch.float32,
    DType.f16: torch.float16,
    DType.bf16: torch.bfloat16,
    DType.i64: torch.int64,
    DType.i32: torch.int32,
    DType.i8: torch.int8,
    DType.u8: torch.uint8,
    DType.bool_: torch.bool,
}
_DTYPE = {v: k for k, v in _TORCH.items()}


def torch_dtype(dtype: DType) -> torch.dtype:
    """The PyTorch element type. Raises LoweringError for one PyTorch cannot compute with (4-bit integers)."""
    if dtype not in _TORCH:
        raise LoweringError(f"PyTorch has no tensors of {dtype}", hint="dequantize before lowering to PyTorch")
    return _TORCH[dtype]


def dtype_of(dtype: torch.dtype) -> DType:
    """The IR element type of a PyTorch one. Raises LoweringError if the IR has none."""
    if dtype not in _DTYPE:
        raise LoweringError(f"element type {dtype} has no counterpart in the IR")
    return _DTYPE[dtype]


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """What autocast makes of operands of a product like x; None without autocast, and for float64, which it leaves."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def as_given(x: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Without autocast: a backward pass has the widths of its forward pass, wherever it is called."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()


def to_tensor(array: Array) -> torch.Tensor:
    """A PyTorch tensor with its own copy of the values, on the CPU."""
    dtype = torch_dtype(DType.of(array.dtype))
    if dtype == torch.bfloat16:
        return library.from_numpy(np.array(array.view(np.int16))).view(torch.bfloat16)
    return library.from_numpy(np.array(array))


def to_array(tensor: torch.Tensor) -> Array:
    """The values of a tensor on any device; shares memory with a CPU tensor."""
    cpu = tensor.detach().cpu().contiguous()
    if cpu.dtype == torch.bfloat16:
        return cpu.view(torch.int16).numpy().view(DType.bf16.numpy)
    return cpu.numpy()


class ModuleTensor(Tensor):
    """A parameter or buffer of a module as a lazy tensor: moved to the CPU when its bytes are asked for."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.type = TensorType(dtype_of(tensor.dtype), tuple(tensor.shape))

    def numpy(self) -> Array:
        whole: Any = getattr(self.tensor, "full_tensor", None)  # A sharded DTensor is gathered first.
        return to_array(self.tensor if whole is None else whole())
