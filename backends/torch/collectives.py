"""What the ranks of a tensor-parallel group do together, as PyTorch ops with their gradients."""

from __future__ import annotations

from typing import Any

import torch

from ...ir.errors import MonographError
from .untyped import library

_group: Any = None


def use_group(group: Any) -> None:
    """The process group over which the layers of this process are shared from now on."""
    global _group
    _group = group


@library.library.custom_op("monograph::sum_over_ranks", mutates_args=())
def sum_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """The sum over the group; every summand gets the gradient of the sum."""
    if _group is None:
        raise MonographError("this module is one rank's share: it needs its process group (see docs/distributed.md)")
    y = x.clone(memory_format=torch.contiguous_format)
    library.distributed.all_reduce(y, group=_group)
    return y


@library.library.custom_op("monograph::copy_to_ranks", mutates_args=())
def copy_to_ranks(x: torch.Tensor) -> torch.Tensor:
    """x; its gradient is the sum of the gradients of all ranks."""
    return x.clone(memory_format=torch.contiguous_format)


@sum_over_ranks.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@copy_to_ranks.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _pass_on(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
    return grad


def _add_up(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
    return torch.ops.monograph.sum_over_ranks(grad)


sum_over_ranks.register_autograd(_pass_on)
copy_to_ranks.register_autograd(_add_up)
