"""Checkpoints: a folder in Hugging Face layout, with the optimizer beside it so that a run can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..frontends.dsl import Model
from ..frontends.tokenizer import Tokenizer
from ..ir.errors import MonographError
from ..ir.files import Stage, staged
from ..ir.safetensors import write_file
from ..ir.tensors import Tensor
from ..ir.weights import SINGLE, Weights
from .errors import TrainingError

OPTIMIZER, CONFIG = "optimizer.safetensors", "config.json"


def save_model(model: Model, folder: str | Path) -> Path:
    """Write config.json, model.safetensors and tokenizer files, whole or not at all; gives the folder.

    Raises MonographError if the model has no weights.
    """
    if model.weights is None:
        raise MonographError(f"{model.family.name} has no weights to save: train or load it first")
    with staged(folder) as stage:
        _write_about(stage, model)
        with stage.open(SINGLE) as f:
            write_file(f, model.weights, {"format": "pt"})
    return Path(folder)


def save_run(model: Model, optimizer: Mapping[str, Tensor], step: int, folder: str | Path) -> None:
    """`save_model` with the optimizer's state after `step` steps; all files appear together."""
    assert model.weights is not None
    metadata = {"format": "pt", "step": str(step)}
    with staged(folder) as stage:
        _write_about(stage, model)
        with stage.open(OPTIMIZER) as f:
            write_file(f, optimizer, metadata)
        with stage.open(SINGLE) as f:
            write_file(f, model.weights, metadata)


def load_run(folder: str | Path) -> tuple[Weights, Weights, int]:
    """(weights, optimizer state, steps done) of an unfinished run. Raises WeightsError or TrainingError."""
    folder = Path(folder)
    weights, optimizer = Weights.open(folder / SINGLE), Weights.open(folder / OPTIMIZER)
    steps = [w.metadata.get("step", "?") for w in (weights, optimizer)]
    if steps[0] != steps[1] or not steps[0].isdigit():
        what = f"{SINGLE} is of step {steps[0]} and {OPTIMIZER} of step {steps[1]}: they do not belong together"
        raise TrainingError(what, place=str(folder))
    return weights, optimizer, int(steps[0])


def _write_about(stage: Stage, model: Model) -> None:
    """config.json, generation_config.json and the tokenizer's files."""
    eos = model.tokenizer.eos_id if isinstance(model.tokenizer, Tokenizer) else None
    special = {} if eos is None else {"bos_token_id": eos, "eos_token_id": eos}
    about = {"model_type": model.family.name, "dtype": "float32", **model.config.to_dict(), **special}
    _write_json(stage, CONFIG, about)
    if special or model.generation:
        _write_json(stage, "generation_config.json", {**special, **model.generation})
    if isinstance(model.tokenizer, Tokenizer):
        model.tokenizer.write(stage)


def _write_json(stage: Stage, name: str, content: Mapping[str, Any]) -> None:
    with stage.open(name) as f:
        f.write(json.dumps(content, indent=2).encode())


def trained(model: Model, weights: Weights, tokenizer: Tokenizer, folder: Path | None) -> Model:
    """The model with new weights and the tokenizer they were trained with."""
    return replace(model, weights=weights, tokenizer=tokenizer, folder=folder)
