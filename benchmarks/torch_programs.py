"""Modules through torch.export: outputs at several sizes, gradients and one AdamW step, beside PyTorch's own.

python benchmarks/torch_programs.py [NAME ...] [--no-publish]

NAME: of a tiny random model of transformers, or of a module written by hand, from tests/torch_zoo.py (all of them if
none is given). Then a LoRA is trained on two of them and goes out merged and fused, and ONNX files are trained.
"""

from __future__ import annotations

import copy
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import onnx
import onnxruntime
import torch
from monograph.console import working
from monograph.passes.raising import raise_graph
from report import ROOT, Row, parser, publish
from torch import nn

sys.path.insert(0, str(ROOT / "tests"))

from exported_models import First, exported  # noqa: E402
from torch_zoo import BY_HAND, NAMES, inputs_at, outputs_of, subject  # noqa: E402

OTHER = (
    {"rows": 2, "length": 9, "targets": 6},
    {"rows": 4, "length": 16, "targets": 3},
    {"rows": 7, "length": 2, "targets": 12},
)
RATE = 1e-3
NOISE = 1e-3
"""Elements whose gradient is below this share of the largest of their parameter are not compared after a step: AdamW
divides by the gradient, so that what is rounding alone becomes a whole step either way."""
ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedMultiHeadAttention")

Tensors = dict[str, torch.Tensor]


@dataclass
class Compared:
    """Largest differences. outputs at the sizes of the example, and at others; gradients; parameters after a step, as a
    share of the learning rate, over the share `seen` of all elements."""

    example: float = 0.0
    others: float = 0.0
    gradients: float = 0.0
    step: float = 0.0
    seen: float = 0.0


def apart(found: torch.Tensor, wanted: torch.Tensor, least: float = 0.0) -> float:
    """The largest difference as a share of the largest number, but of `least` at least; inf where NaN is not NaN."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return np.inf
    if not wanted.numel():
        return 0.0
    a, b = found.double(), wanted.double()
    if bool((a.isnan() != b.isnan()).any()):
        return np.inf
    gap = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(0.0, np.inf)
    finite = b[b.isfinite()].abs()
    scale = max(float(finite.max()) if finite.numel() else 0.0, least)
    return float(gap.max()) / scale if scale else float(gap.max())


def masked(given: Tensors, kind: int) -> Tensors:
    """The inputs with masks of ones, padded on the right, padded on the left, or with holes."""
    for mask in (v for k, v in given.items() if "mask" in k):
        if kind == 1:
            mask[0, -1:] = 0
        elif kind == 2:
            mask[0, : mask.shape[1] // 2] = 0
        elif kind == 3:
            mask[-1, 0] = 0
    return given


def loss_of(outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A number that every element of every output changes, each in its own way."""
    parts = [x for x in outputs.values() if x.is_floating_point()]
    return sum(((x * torch.linspace(-1, 1, x.numel()).reshape(x.shape)).sum() for x in parts), torch.zeros(()))


def gradients(module: nn.Module, outputs: Mapping[str, torch.Tensor]) -> Tensors:
    """The gradient of `loss_of` for each parameter that learns; zeros where there is none."""
    module.zero_grad()
    loss_of(outputs).backward()
    learning = {k: p for k, p in module.named_parameters() if p.requires_grad}
    return {k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in learning.items()}


def compared(name: str, module: nn.Module, ours: nn.Module) -> Compared:
    """Compare a module and what was made of it."""
    result = Compared()
    torch.manual_seed(1)
    given = inputs_at(name, {"rows": 3, "length": 7, "targets": 5})
    for kind in range(4):
        result.example = max(result.example, worst(module, ours, masked(copy.deepcopy(given), kind)))
    for sizes in OTHER:
        for kind in range(4):
            result.others = max(result.others, worst(module, ours, masked(inputs_at(name, sizes), kind)))
    given = masked(inputs_at(name, OTHER[0]), 1)
    wanted, found = gradients(module, outputs_of(module, given)), gradients(ours, dict(ours(**given)))
    largest = max(float(g.abs().max()) for g in wanted.values())
    least = 1e-3 * largest
    result.gradients = max(apart(found[k], wanted[k], least) for k in wanted)
    for m in (module, ours):
        torch.optim.AdamW(m.parameters(), RATE, weight_decay=0.1).step()
    own = dict(ours.named_parameters())
    steps: list[torch.Tensor] = []
    for k, p in module.named_parameters():
        gap = (own[k] - p).detach().abs() / RATE
        if k in wanted:
            gap = gap[wanted[k].abs() > max(NOISE * float(wanted[k].abs().max()), 1e-5 * largest)]
        steps.append(gap.flatten())
    every = torch.cat(steps)
    result.step, result.seen = float(every.max()), len(every) / sum(p.numel() for p in module.parameters())
    return result


def worst(module: nn.Module, ours: nn.Module, given: Tensors) -> float:
    """The largest difference of an output; inf where names differ."""
    with torch.no_grad():
        wanted, found = outputs_of(module, given), dict(ours(**given))
    return max(apart(found[k], wanted[k]) for k in wanted) if found.keys() == wanted.keys() else np.inf


def row(name: str) -> Row:
    """One module."""
    given = subject(name)
    model = mg.load(given.module, given.traced, dynamic_shapes=given.varies)
    ours = mg.to_torch(model)
    theirs = dict(given.module.named_parameters())
    if dict(ours.named_parameters()).keys() != theirs.keys():
        raise SystemExit(f"{name}: other parameters: {sorted(dict(ours.named_parameters()).keys() ^ theirs.keys())}")
    all_names = len(dict(given.module.named_parameters(remove_duplicate=False)))
    raised = raise_graph(model.graph(), model.weights.numpy if model.weights else None)
    found = compared(name, given.module, ours)
    return {
        "module": name,
        "parameters": len(theirs),
        "tied": all_names - len(theirs),
        "attention": raised.counts.get("attention", 0),
        "left over": len(raised.left),
        "error, traced sizes": found.example,
        "error, other sizes": found.others,
        "gradients": found.gradients,
        "AdamW step": found.step,
        "elements compared": round(found.seen, 3),
    }
