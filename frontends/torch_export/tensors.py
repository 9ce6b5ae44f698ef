"""Tensors of a program as lazy tensors of the IR, and their element types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from ...ir.tensors import Array, Tensor
from ...ir.types import DType, TensorType
from .errors import UnknownFormError

_DTYPES: Mapping[torch.dtype, DType] = {
    torch.float64: DType.f64,
    torch.float32: DType.f32,
    torch.float16: DType.f16,
    torch.bfloat16: DType.bf16,
    torch.int64: DType.i64,
    torch.int32: DType.i32,
    torch.int8: DType.i8,
    torch.uint8: DType.u8,
    torch.bool: DType.bool_,
}

_PARTS: Mapping[torch.dtype, torch.dtype] = {
    torch.complex128: torch.float64,
    torch.complex64: torch.float32,
    torch.complex32: torch.float16,
}


def dtype_of(dtype: torch.dtype) -> DType:
    """The element type in the IR. Raises UnknownFormError if it has none."""
    if dtype not in _DTYPES:
        raise UnknownFormError(f"element type {dtype} has no counterpart in the IR")
    return _DTYPES[dtype]


def part_dtype_of(dtype: torch.dtype) -> DType:
    """The same; of complex numbers that of their parts."""
    return dtype_of(_PARTS.get(dtype, dtype))


class LiveTensor(Tensor):
    """A parameter or buffer of a module: its memory is shared, and moved to the CPU only when it is asked for.

    A complex one [..] is real numbers [.., 2], as `torch.view_as_real` gives them.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor
        self.type = TensorType(dtype_of(self.tensor.dtype), tuple(self.tensor.shape))

    def numpy(self) -> Array:
        cpu = self.tensor.detach().cpu().contiguous()
        if cpu.dtype == torch.bfloat16:
            return cast("Any", cpu.view(torch.int16).numpy()).view(DType.bf16.numpy)
        return cast("Array", cpu.numpy())


def written_out(tensor: torch.Tensor) -> Any:
    """The numbers of a tensor as a constant of the graph holds them: a number, or nested tuples."""
    return _tuples(cast("Any", tensor.detach().cpu()).tolist())


def _tuples(x: Any) -> Any:
    return tuple(_tuples(v) for v in cast("list[Any]", x)) if isinstance(x, list) else x
