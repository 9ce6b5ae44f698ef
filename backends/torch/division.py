"""Floor division and its rest in PyTorch, which stops where an integer is divided by 0."""

from __future__ import annotations

import torch


def floor_divide(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The largest integer that is at most x / y; an integer by 0 gives 0."""
    if x.dtype.is_floating_point:
        return torch.div(x, y, rounding_mode="floor")
    none = y == 0
    return torch.div(x, y + none, rounding_mode="floor") * ~none


def remainder(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x - y * floor(x / y); an integer by 0 gives 0."""
    if x.dtype.is_floating_point:
        return torch.remainder(x, y)
    none = y == 0
    return torch.remainder(x, y + none) * ~none
