"""Functions of PyTorch that have no types, or none that a checker finds, with types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import distributed
from torch.distributed import checkpoint

from ..ir.tensors import Array

_torch: Any = torch
_distributed: Any = distributed
_checkpoint: Any = checkpoint


def from_array(array: Array) -> torch.Tensor:
    """The array as a tensor, not copied."""
    return _torch.from_numpy(array)


def backward(loss: torch.Tensor) -> None:
    call: Any = loss
    call.backward()


def fork_generators(devices: Sequence[str]) -> AbstractContextManager[None]:
    """The state of the random generators, of the CPU and of `devices`, is put back when the block ends."""
    return _torch.random.fork_rng(devices)


def seed_generators(seed: int) -> None:
    _torch.manual_seed(seed)


def square_of_norm(t: torch.Tensor) -> torch.Tensor:
    """The square of the norm of all elements, taken in f32, as f64."""
    return _torch.linalg.vector_norm(t, dtype=torch.float32).double().square()


def scale_all(tensors: Sequence[torch.Tensor], factor: torch.Tensor) -> None:
    """Multiply each tensor in place."""
    _torch._foreach_mul_(list(tensors), factor)


def move_all(tensors: Sequence[torch.Tensor], towards: Sequence[torch.Tensor], share: float) -> None:
    """Move each tensor in place by a share of its way to another."""
    _torch._foreach_lerp_(list(tensors), list(towards), share)


def all_reduce(t: torch.Tensor, group: Any = None) -> None:
    _distributed.all_reduce(t, group=group)


def all_gather(into: Sequence[torch.Tensor], t: torch.Tensor, group: Any) -> None:
    _distributed.all_gather(list(into), t, group=group)


def save_checkpoint(state: Mapping[str, Any], **how: Any) -> None:
    """See torch.distributed.checkpoint.save."""
    _checkpoint.save(dict(state), **how)


def load_checkpoint(state: Mapping[str, Any], **how: Any) -> None:
    """See torch.distributed.checkpoint.load."""
    _checkpoint.load(dict(state), **how)
