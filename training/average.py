"""A running mean of the weights: what is measured and kept in place of the last ones. (Polyak & Juditsky 1992)"""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import torch

from ..backends.torch.untyped import move_all
from .layout import local


class Average:
    """mean <- decay * mean + (1 - decay) * weight, after every update; only of what is trained."""

    def __init__(self, module: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: p.detach() for k, p in module.named_parameters() if p.requires_grad}
        self.means = {k: p.clone() for k, p in self.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        means, weights = ([local(t) for t in d.values()] for d in (self.means, self.weights))
        move_all(means, weights, 1 - self.decay)

    @contextlib.contextmanager
    def applied(self) -> Generator[None]:
        """The module computes with the means inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for k, p in self.weights.items():
            weight, mean = local(p), local(self.means[k])
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)
