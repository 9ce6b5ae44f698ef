"""Checkpoints of a run: a folder in Hugging Face layout, with the optimizer beside it so that the run can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..frontends.dsl import Model
from ..frontends.huggingface import hf_config
from ..ir.errors import WeightsError
from ..ir.files import staged
from ..ir.safetensors import write_file
from ..ir.tensors import Tensor
from ..ir.weights import SINGLE, Weights
from .errors import TrainingError

OPTIMIZER = "optimizer.safetensors"


def save_run(model: Model, optimizer: Mapping[str, Tensor], step: int, folder: str | Path) -> None:
    """Write the model (config, weights, tokenizer) and the optimizer's state after `step` steps, all or nothing."""
    if model.weights is None:
        raise WeightsError(f"model {model.family.name} has no weights to save")
    metadata = {"format": "pt", "step": str(step)}
    about = {"config.json": hf_config(model, model.weights), "generation_config.json": model.generation}
    with staged(folder) as stage:
        for name, content in about.items():
            with stage.open(name) as f:
                f.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        if model.tokenizer is not None:
            model.tokenizer.write(stage)
        for name, tensors in ((OPTIMIZER, optimizer), (SINGLE, model.weights)):
            with stage.open(name) as f:
                write_file(f, tensors, metadata, lambda name, size: None)


def load_run(folder: str | Path) -> tuple[Weights, Weights, int]:
    """(weights, optimizer state, steps done). Raises WeightsError, or TrainingError if they are of different steps."""
    folder = Path(folder)
    weights, optimizer = Weights.open(folder / SINGLE), Weights.open(folder / OPTIMIZER)
    steps = [w.metadata.get("step", "?") for w in (weights, optimizer)]
    if steps[0] != steps[1] or not steps[0].isdigit():
        what = f"{SINGLE} is of step {steps[0]} and {OPTIMIZER} of step {steps[1]}: they do not belong together"
        raise TrainingError(what, place=str(folder))
    return weights, optimizer, int(steps[0])
