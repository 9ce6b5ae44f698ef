"""What PyTorch's own annotations leave open, each thing under one typed name."""

from __future__ import annotations

from typing import Any

import torch

library: Any = torch
"""The library itself, for names that its annotations do not have."""


def applied(function: Any, *given: Any) -> Any:
    """`function.apply(*given)` of a torch.autograd.Function."""
    return function.apply(*given)


def storage_key(t: torch.Tensor) -> int:
    """A number for the memory of a tensor, equal for its views."""
    storage: Any = t.untyped_storage()
    return storage._cdata
