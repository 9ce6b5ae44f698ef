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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import onnx
import torch
from monograph.console import out, table, working
from monograph.passes.raising import raise_graph
from onnxruntime import InferenceSession
from report import ROOT, Row, parser, publish
from torch import nn

sys.path.insert(0, str(ROOT / "tests"))

from exported_models import distinct, made, written
from torch_zoo import BY_HAND, NAMES, inputs_at, outputs_of, subject

OTHER = (
    {"rows": 2, "length": 9, "targets": 6},
    {"rows": 4, "length": 16, "targets": 3},
    {"rows": 7, "length": 2, "targets": 12},
)
RATE = 1e-3
NOISE = 1e-3
"""Elements whose gradient is below this share of the largest of their parameter are not compared after a step: AdamW
divides by the gradient, so that what is rounding alone becomes a whole step either way."""
ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention")
TARGETS = {"llama": ("q_proj", "v_proj"), "bloom": ("query_key_value",), "writer": ("qkv_proj", "down_proj")}
"""Layers that get a LoRA, by module."""
FILES = ("bert", "llama", "gpt2", "t5")

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
            size = wanted[k].abs()
            gap = gap[(size > max(NOISE * float(size.max()), 1e-5 * largest)) | ((size == 0) & (found[k] == 0))]
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
    theirs, own = (dict(m.named_parameters()).keys() for m in (given.module, ours))
    every = len(dict(given.module.named_parameters(remove_duplicate=False)))
    raised = raise_graph(model.graph(), None if model.weights is None else model.weights.numpy)
    found = compared(name, given.module, ours)
    return {
        "module": name,
        "parameters": len(theirs),
        "tied": every - len(theirs),
        "same names": own == theirs,
        "attention": raised.counts.get("attention", 0),
        "error, traced sizes": found.example,
        "error, other sizes": found.others,
        "gradients": found.gradients,
        "AdamW step": found.step,
        "elements compared": round(found.seen, 3),
    }


def counted(file: Path) -> int:
    """The attention ops in a file."""
    return sum(n.op_type in ATTENTION for n in onnx.load(file, load_external_data=False).graph.node)


def adapted(name: str, folder: Path) -> Row:
    """A LoRA trained on a module, merged and written: both files held against the module with its weights."""
    given = subject(name)
    model = mg.load(given.module, given.traced, dynamic_shapes=given.varies)
    ids = np.random.default_rng(0).integers(3, 50, (32, 7))
    data = mg.Arrays.of({"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids})
    lora = mg.Lora(rank=2, targets=TARGETS[name])
    settings: dict[str, Any] = {"steps": 5, "batch": 8, "learning_rate": 1e-2, "progress": False}
    mg.finetune(model, data, lora=lora, folder=folder / "adapter", **settings)
    merged = mg.Adapter.load(folder / "adapter").merged(model)
    mg.export(merged, folder / "out")
    report = mg.optimize(folder / "out" / "model.onnx", folder / "fast", strict=True)
    torch.manual_seed(1)
    inputs = masked(inputs_at(name, OTHER[0]), 2)
    before = outputs_of(given.module, inputs)["logits"].detach()
    weights = merged.weights
    assert weights is not None
    state = {k: torch.from_numpy(weights.numpy(k)) for k in given.module.state_dict() if k in weights}
    given.module.load_state_dict(state, strict=False)
    wanted = outputs_of(given.module, inputs)["logits"].detach()
    feeds = {k: v.numpy() for k, v in inputs.items()}
    kept = inputs["attention_mask"].bool()
    errors = [
        apart(torch.from_numpy(InferenceSession(f).run(["logits"], feeds)[0])[kept], wanted[kept])
        for f in (folder / "out" / "model.onnx", folder / "fast" / "model.onnx")
    ]
    return {
        "module": name,
        "changed by training": apart(before, wanted),
        "attention ops, exported": counted(folder / "out" / "model.onnx"),
        "after optimize": counted(folder / "fast" / "model.onnx"),
        "nodes": report.nodes[0],
        "after": report.nodes[1],
        "error, exported": errors[0],
        "error, optimized": errors[1],
    }


def from_a_file(kind: str, folder: Path) -> Row:
    """An ONNX file as a model that is trained: gradients beside those of the module that it was exported from.

    Parameters are found by their numbers: the exporter renames those that it turns, and writes tied ones twice.
    """
    module = distinct(made(kind))
    folder.mkdir()
    model = mg.load(str(written(module, folder)))
    ours = mg.to_torch(model)
    ids, mask = torch.randint(1, 40, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    mask[0, -3:] = 0
    wanted, (found,) = module(ids, mask), ours(input_ids=ids, attention_mask=mask).values()
    error = apart(found[mask.bool()], wanted[mask.bool()])
    for y in (wanted, found):
        loss_of({"": y * mask[..., None]}).backward()
    pairs = [(p, p.grad, sources(p, ours)) for p in module.parameters() if p.grad is not None]
    learning = {k for k, p in ours.named_parameters() if p.requires_grad}
    largest = max(float(g.abs().max()) for _, g, _ in pairs)
    gaps = [apart(sum(part.values(), torch.zeros_like(p)), g, 1e-3 * largest) for p, g, part in pairs]
    return {
        "file": kind,
        "parameters": len(learning),
        "of the module": len(pairs),
        "found": sum(bool(part) for _, _, part in pairs),
        "not of the module": len(learning - {k for _, _, part in pairs for k in part}),
        "error": error,
        "gradients": max(gaps),
    }


def sources(p: torch.Tensor, ours: nn.Module) -> Tensors:
    """Gradients of the parameters that have the numbers of one of the original, as it lies there, by name."""
    same = {k: q for k, q in ours.named_parameters() if q.shape == p.shape and torch.equal(q, p)}
    turned = {k: q for k, q in ours.named_parameters() if q.dim() == 2 and torch.equal(q.T, p) and k not in same}
    of = {k: q.grad for k, q in same.items()} | {k: None if q.grad is None else q.grad.T for k, q in turned.items()}
    return {k: g for k, g in of.items() if g is not None}


def main() -> None:
    """See the top of the file."""
    options = parser(__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help="modules (none: all, and the LoRA and the files)")
    asked = options.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    names = asked.names or [*NAMES, *BY_HAND]
    with working("modules"), tempfile.TemporaryDirectory() as folder:
        rows = [row(name) for name in names]
        adapters = [] if asked.names else [adapted(name, Path(folder) / name) for name in TARGETS]
        files = [] if asked.names else [from_a_file(kind, Path(folder) / f"{kind}.file") for kind in FILES]
    for title, found in (("a LoRA, merged and out again", adapters), ("ONNX files, trained", files)):
        if found:
            out().print(table(title, found))
    note = (
        "Errors and gradients: the largest difference as a share of the largest number of that output, or gradient of "
        "that parameter (at least a thousandth of the largest of all). Masks of ones, padded on either side, with a "
        "hole. AdamW step: the largest difference of a parameter as a share of the learning rate, over elements whose "
        f"gradient is at least {NOISE:g} of the largest of its parameter; below, its sign is rounding."
    )
    only = asked.no_publish or bool(asked.names)
    publish("torch_programs", rows, note=note, only_print=only, adapters=adapters, files=files)


if __name__ == "__main__":
    main()
