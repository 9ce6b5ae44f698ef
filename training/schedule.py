"""Learning rate over steps, and which parameters decay."""

from __future__ import annotations

import math

import torch

from .settings import Settings


def learning_rate(
    step: int,
    *,
    peak: float,
    steps: int,
    warmup: int,
    final: float = 0.1,
    schedule: str = "cosine",
    decay: float = 0.2,
) -> float:
    """Rate of step 0, 1, ...: linear from peak/warmup up to `peak`, first reached at step `warmup - 1`; then

    cosine: half a cosine down to `final * peak` at the last step (Loshchilov & Hutter 2017);
    linear: a straight line down to the same;
    wsd: `peak` until the last `decay` share of the steps, then a straight line (Hu et al. 2024);
    inverse_sqrt: peak * sqrt(warmup / (step + 1)) (Vaswani et al. 2017, where peak is (dim * warmup) ** -0.5);
    constant: `peak`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    if schedule == "inverse_sqrt":
        return peak * math.sqrt(max(warmup, 1) / (step + 1))
    begin = max(warmup, steps - round(decay * steps)) if schedule == "wsd" else warmup
    if step < begin:
        return peak
    progress = min((step - begin + 1) / max(steps - begin, 1), 1.0)
    left = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress
    return peak * (final + (1 - final) * left)


def rate_at(step: int, settings: Settings) -> float:
    """The learning rate that settings give step 0, 1, ..."""
    s = settings
    assert s.warmup is not None
    return learning_rate(
        step, peak=s.learning_rate, steps=s.steps, warmup=s.warmup, final=s.final, schedule=s.schedule, decay=s.decay
    )


def parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """AdamW groups: matrices decay; norms and biases, all of rank below 2, do not."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
