"""What PyTorch's own annotations leave open, each thing under one typed name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import distributed
from torch.distributed import checkpoint

from ...ir.tensors import Array

library: Any = torch
"""The library itself, for names that its annotations do not have."""
_distributed: Any = distributed
_checkpoint: Any = checkpoint


def applied(function: Any, *given: Any) -> Any:
    """`function.apply(*given)` of a torch.autograd.Function."""
    return function.apply(*given)


def storage_key(t: torch.Tensor) -> int:
    """A number for the memory of a tensor, equal for its views."""
    storage: Any = t.untyped_storage()
    return storage._cdata


def from_array(array: Array) -> torch.Tensor:
    """The array as a tensor, not copied."""
    return library.from_numpy(array)


def backward(loss: torch.Tensor) -> None:
    call: Any = loss
    call.backward()


def fork_generators(devices: Sequence[str]) -> AbstractContextManager[None]:
    """The state of the random generators, of the CPU and of `devices`, is put back when the block ends."""
    return library.random.fork_rng(devices)


def seed_generators(seed: int) -> None:
    library.manual_seed(seed)


def square_of_norm(t: torch.Tensor) -> torch.Tensor:
    """The square of the norm of all elements, taken in f32, as f64."""
    return library.linalg.vector_norm(t, dtype=torch.float32).double().square()


def scale_all(tensors: Sequence[torch.Tensor], factor: torch.Tensor) -> None:
    """Multiply each tensor in place."""
    library._foreach_mul_(list(tensors), factor)


def move_all(tensors: Sequence[torch.Tensor], towards: Sequence[torch.Tensor], share: float) -> None:
    """Move each tensor in place by a share of its way to another."""
    library._foreach_lerp_(list(tensors), list(towards), share)


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
