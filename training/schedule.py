"""Learning rate over steps, and which parameters decay."""

from __future__ import annotations

import math

import torch


def learning_rate(step: int, *, peak: float, steps: int, warmup: int, final: float = 0.1) -> float:
    """Rate of step 0, 1, ...: linear from peak/warmup up to `peak`, then a half cosine down to `final * peak`.

    (Loshchilov & Hutter 2017.) Step `warmup - 1` is the first at `peak`, step `steps - 1` the one at `final * peak`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup + 1) / max(steps - warmup, 1)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """AdamW groups: matrices decay; norms and biases, all of rank below 2, do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
