"""What the ranks of a tensor-parallel group do together, as PyTorch ops with their gradients."""

from __future__ import annotations

from typing import Any

import torch

from ...ir.errors import MonographError
from .untyped import library


def _group(name: str) -> Any:
    """The process group of that name. Raises MonographError where this process is in none."""
    try:
        return library.distributed.distributed_c10d._resolve_process_group(name)
    except (RuntimeError, ValueError, KeyError):
        what = f"this module is one rank's share: its process group {name!r} is not there"
        raise MonographError(what, hint="start it as docs/distributed.md says") from None


@library.library.custom_op("monograph::sum_over_ranks", mutates_args=())
def sum_over_ranks(x: torch.Tensor, group: str) -> torch.Tensor:
    """The sum over the group; every summand gets the gradient of the sum."""
    y = x.clone(memory_format=torch.contiguous_format)
    library.distributed.all_reduce(y, group=_group(group))
    return y


@library.library.custom_op("monograph::copy_to_ranks", mutates_args=())
def copy_to_ranks(x: torch.Tensor, group: str) -> torch.Tensor:
    """x; its gradient is the sum of the gradients of all ranks."""
    return x.clone(memory_format=torch.contiguous_format)


@sum_over_ranks.register_fake
def _(x: torch.Tensor, group: str) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@copy_to_ranks.register_fake
def _(x: torch.Tensor, group: str) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _note_group(ctx: Any, inputs: tuple[torch.Tensor, str], output: torch.Tensor) -> None:
    ctx.group = inputs[1]


def _pass_on(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
    return grad, None


def _add_up(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
    return torch.ops.monograph.sum_over_ranks(grad, ctx.group), None


sum_over_ranks.register_autograd(_pass_on)
copy_to_ranks.register_autograd(_add_up, setup_context=_note_group)
