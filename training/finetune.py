"""Fine-tuning: all weights or a LoRA, on instructions, on pairs of answers (DPO), or from a teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..frontends.dsl import Model
from ..ir.errors import ConfigError
from .adapters import Lora, base_weights
from .distill import DistillationLoss
from .dpo import Preferences
from .loop import Run, drive
from .lora import LoraWeights
from .objective import Objective, objective_of
from .preference import PreferenceLoss
from .progress import preparing
from .settings import Settings
from .source import Source, check_fit, fitted
from .trained_weights import FullWeights
from .trained_weights import Tuned as Tuned
from .world import left_on_error, rank_here

RATES = {"full": 2e-5, "lora": 2e-4, "dpo": 1e-6, "dpo lora": 2e-5}
"""Learning rates at their peak where none is given."""

_SHOWN = ("resume", "progress", "tensorboard", "observe")

MakeObjective = Callable[[Settings, LoraWeights | None], Objective]


def finetune(
    model: Model, data: Source, *, lora: Lora | None = None, quantized: bool = False, **settings: Any
) -> Tuned:
    """Train a model that has weights on `data`: Instructions, a Corpus, or anything with the interface of one.

    lora: train only this adapter (None: all weights). quantized: hold the frozen weights of linear layers in 8 bits
    meanwhile; the model that comes out has the adapter merged into the weights as they were. settings: as of
    `train`, with defaults that suit fine-tuning; `folder` gets the model, or with `lora` the adapter in PEFT's format.
    Raises as `train` does, and WeightsError for a model without weights.
    """
    if quantized and lora is None:
        raise ConfigError("quantized weights cannot be trained: give a LoRA")

    def objective(checked: Settings, adapter: LoraWeights | None) -> Objective:
        base_weights(model)
        return objective_of(model, checked.label_smoothing)

    return _run(model, data, lora, "full", settings, objective, quantized=quantized)


def dpo(model: Model, data: Preferences, *, beta: float = 0.1, lora: Lora | None = None, **settings: Any) -> Tuned:
    """Train on pairs of answers against the model as it is now: with `lora` itself without the adapter, else a copy.

    beta: how strongly the model is held to the reference. A batch is `batch` pairs. The rest as for `finetune`.
    """
    if beta <= 0:
        raise ConfigError(f"beta is {beta}, expected more than 0")

    def objective(checked: Settings, adapter: LoraWeights | None) -> Objective:
        base_weights(model)
        return PreferenceLoss(model, data, beta, adapter)

    return _run(model, data, lora, "dpo", settings, objective)


def distill(
    student: Model,
    teacher: Model,
    data: Source,
    *,
    temperature: float = 2.0,
    hard: float = 0.5,
    lora: Lora | None = None,
    **settings: Any,
) -> Tuned:
    """Train `student` (with weights, or from nothing if it has none) on the probabilities of `teacher`.

    temperature, hard: see `distillation_loss`. The rest as for `finetune`. Raises ConfigError if the two do not have
    the same vocabulary and inputs.
    """
    if temperature <= 0 or not 0 <= hard <= 1:
        raise ConfigError(f"temperature is {temperature} and hard {hard}, expected more than 0 and 0 to 1")

    def objective(checked: Settings, adapter: LoraWeights | None) -> Objective:
        return DistillationLoss(student, teacher, data, checked.length, temperature, hard)

    return _run(student, data, lora, "full", settings, objective)


def tuning_settings(kind: str, **given: Any) -> Settings:
    """Settings of `train`, with defaults as fine-tuning wants them: kind is a key of RATES."""
    defaults = {
        "batch": 8, "length": 512, "learning_rate": RATES[kind], "final": 0.0, "weight_decay": 0.0,
        "betas": (0.9, 0.999),
    }  # fmt: skip
    return Settings.of({**defaults, **{k: v for k, v in given.items() if v is not None}})


def _run(
    model: Model,
    data: Source,
    lora: Lora | None,
    kind: str,
    given: Mapping[str, Any],
    make_objective: MakeObjective,
    *,
    quantized: bool = False,
) -> Tuned:
    """Train the weights that `lora` says with an objective for them. kind: a key of RATES, that of all weights."""
    settings = dict(given)
    folder, metrics = settings.pop("folder", None), settings.pop("metrics", None)
    shown = {k: settings.pop(k) for k in _SHOWN if k in settings}
    name = kind if lora is None else "dpo lora" if kind == "dpo" else "lora"
    with left_on_error(), preparing("preparing the first step", shown.get("progress", True) and not rank_here()):
        checked = tuning_settings(name, **settings)
        data = fitted(model, data)
        check_fit(model, data, checked.length)
        adapter = None if lora is None else LoraWeights(model, data, lora, quantized=quantized)
        trained = FullWeights(model, data) if adapter is None else adapter
        objective = make_objective(checked, adapter)
        place = None if folder is None else Path(folder)
        run = Run(model, data, checked, place, metrics, objective=objective, trained=trained)
    return drive(run, **shown)
