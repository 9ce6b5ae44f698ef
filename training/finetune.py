"""Fine-tuning: all weights or a LoRA, on instructions, on pairs of answers (DPO), or from a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..backends.torch import to_inputs, to_torch
from ..frontends.dsl import Model
from ..ir.errors import ConfigError
from ..ir.graph import Graph, Init
from ..ir.types import TensorType
from ..ir.weights import Weights
from ..passes import pipelines
from ..passes.adapt import UP, lora_params
from ..passes.encode import keep_encodings
from ..passes.freeze import encode_frozen, quantize_frozen
from .adapters import Adapter, Lora, base_weights
from .checkpoint import Checkpoint
from .distill import distillation_loss
from .dpo import Preferences, dpo_loss, log_probabilities
from .loop import Metrics, Run, drive
from .settings import Settings
from .source import Batch, check_fit, check_tokenizer, split_rows
from .world import left_on_error

RATES = {"full": 2e-5, "lora": 2e-4, "dpo": 1e-6, "dpo lora": 2e-5}
"""Learning rates at their peak where none is given."""


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model; with a LoRA also the adapter, which is merged in `model` (computed when weights are read)."""

    model: Model
    adapter: Adapter | None = None


def finetune(model: Model, data: Any, *, lora: Lora | None = None, quantized: bool = False, **settings: Any) -> Tuned:
    """Train a model that has weights on `data`: Instructions, a Corpus, or anything with the interface of one.

    lora: train only this adapter (None: all weights). quantized: hold the frozen weights of linear layers in 8 bits
    meanwhile; the model that comes out has the adapter merged into the weights as they were. settings: as of
    `train`, with defaults that suit fine-tuning; `folder` gets the model, or with `lora` the adapter in PEFT's format.
    Raises as `train` does, and WeightsError for a model without weights.
    """
    if quantized and lora is None:
        raise ConfigError("quantized weights cannot be trained: give a LoRA")
    return _run(FineTune, model, data, lora, "full", settings, quantized=quantized)


def dpo(model: Model, data: Preferences, *, beta: float = 0.1, lora: Lora | None = None, **settings: Any) -> Tuned:
    """Train on pairs of answers against the model as it is now: with `lora` itself without the adapter, else a copy.

    beta: how strongly the model is held to the reference. A batch is `batch` pairs. The rest as for `finetune`.
    """
    if beta <= 0:
        raise ConfigError(f"beta is {beta}, expected more than 0")
    return _run(Dpo, model, data, lora, "dpo", settings, beta=beta)


def distill(
    student: Model,
    teacher: Model,
    data: Any,
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
    return _run(Distill, student, data, lora, "full", settings, teacher=teacher, temperature=temperature, hard=hard)


def plan(kind: str, **given: Any) -> Settings:
    """Settings of `train`, with defaults as fine-tuning wants them: kind is a key of RATES."""
    defaults = {
        "batch": 8, "length": 512, "learning_rate": RATES[kind], "final": 0.0, "weight_decay": 0.0,
        "betas": (0.9, 0.999),
    }  # fmt: skip
    return Settings.of({**defaults, **{k: v for k, v in given.items() if v is not None}})


def _run(
    kind: type[FineTune],
    model: Model,
    data: Any,
    lora: Lora | None,
    rate: str,
    given: Mapping[str, Any],
    **objective: Any,
) -> Tuned:
    settings = dict(given)
    folder, metrics = settings.pop("folder", None), settings.pop("metrics", None)
    shown = {k: settings.pop(k) for k in ("resume", "progress", "tensorboard", "observe") if k in settings}
    name = rate if lora is None else "dpo lora" if rate == "dpo" else "lora"
    folder = None if folder is None else Path(folder)
    with left_on_error():
        run = kind(model, data, plan(name, **settings), folder, lora, metrics=metrics, **objective)
    return Tuned(drive(run, **shown), run.adapter)


class FineTune(Run):
    """A run from given weights, of all of them or of an adapter."""

    adapter: Adapter | None = None

    def __init__(
        self,
        model: Model,
        data: Any,
        settings: Settings,
        folder: Path | None,
        lora: Lora | None,
        quantized: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        self.lora, self.quantized = lora, quantized
        self.coded: dict[str, TensorType] = {}
        self.adapted: frozenset[str] = frozenset()
        super().__init__(model, data, settings, folder, metrics)

    def learner(self) -> Graph:
        graph = self.plain_graph()
        if self.lora is not None:
            self.lora.insert(graph)
            self.adapted = frozenset(lora_params(graph))
            keep_encodings(graph, base_weights(self.model))
        if self.quantized:
            self.coded = quantize_frozen(graph)
        return graph

    def first_weights(self, graph: Graph) -> Weights:
        base = base_weights(self.model)
        drawn = Weights.initialize(graph, self.settings.seed, Init("zeros")) if self.adapted else {}
        return base | encode_frozen(self.coded, base) | {k: drawn[k] for k in self.adapted}

    def trains(self, name: str) -> bool:
        return not self.adapted or name in self.adapted

    def trained(self, weights: Weights) -> Model:
        """With an adapter: the model it was made for with `weights` of the adapter merged."""
        if self.lora is None:
            return super().trained(weights)
        self.adapter = Adapter(self.lora, self.of_adapter(weights), str(self.model.folder or ""))
        return super().trained(base_weights(self.adapter.merged(self.model)))

    def current(self) -> Weights:
        return super().current() if self.lora is None else self.of_adapter(self.state_now())

    def state(self) -> dict[str, Any]:
        return super().state() | ({} if self.lora is None else {"lora": str(self.lora)})

    def keeps(self, name: str) -> bool:
        return self.lora is None or name in self.adapted

    def now(self) -> Model:
        kept, model = self.adapter, self.snapshot()
        self.adapter = kept
        return model

    def of_adapter(self, weights: Weights) -> Weights:
        return Weights({k: weights[k] for k in sorted(self.adapted)})

    def write_weights(self, folder: Path, weights: Weights) -> None:
        if self.lora is None:
            super().write_weights(folder, weights)
        else:
            Adapter(self.lora, self.of_adapter(weights), str(self.model.folder or "")).save(folder, self.model)

    def read_weights(self, found: Checkpoint) -> Weights:
        if self.lora is None or found.sharded:
            noted = found.state.get("lora", str(self.lora))
            if noted != str(self.lora):
                raise ConfigError(f"holds {noted}, not {self.lora}", place=str(found.folder))
            return super().read_weights(found)
        adapter = Adapter.load(found.folder)
        if adapter.lora != self.lora:
            raise ConfigError(f"holds {adapter.lora}, not {self.lora}", place=str(found.folder))
        return adapter.weights

    def publish(self, folder: Path) -> None:
        if self.adapter is None:
            super().publish(folder)
        else:
            self.adapter.save(folder, self.model)

    def published(self, folder: Path) -> Model:
        if self.lora is None:
            return super().published(folder)
        return self.trained(Adapter.load(folder).weights)

    # -- logits, for losses outside the graph ------------------------------------------------------------------

    def inputs_of(self, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        given = to_inputs({k: batch[k] for k in [*self.inputs, "labels"]}, self.settings.device)
        labels = given.pop("labels")
        return given, labels

    def frozen(self, model: Model) -> torch.nn.Module:
        """A module of another model that only gives logits."""
        graph = pipelines.encode(self.plain_graph(model))
        module = to_torch(graph, base_weights(model), static=self.static).to(self.settings.device)
        return module.eval().requires_grad_(False)


class Dpo(FineTune):
    """The log probabilities of both answers under the model and under the reference, and `dpo_loss` over them."""

    rows = 2

    def __init__(
        self,
        model: Model,
        data: Any,
        settings: Settings,
        folder: Path | None,
        lora: Lora | None,
        beta: float,
        metrics: Metrics | None = None,
    ) -> None:
        self.beta = beta
        super().__init__(model, data, settings, folder, lora, metrics=metrics)
        if lora is not None and self.world.sharded:
            raise ConfigError("the reference of a LoRA needs whole weights, which fsdp does not keep", hint="take ddp")
        self.reference = self.frozen(model) if lora is None else None

    def head(self, graph: Graph) -> Graph:
        return graph

    def split(self, batch: Batch, number: int) -> Sequence[Batch]:
        """Both halves are split alike, so that a chosen answer stays with the rejected one."""
        middle = len(batch["labels"]) // 2
        halves = ({k: v[:middle] for k, v in batch.items()}, {k: v[middle:] for k, v in batch.items()})
        pairs = zip(*(split_rows(half, number) for half in halves), strict=True)
        return [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in pairs]

    def loss(self, batch: Batch) -> torch.Tensor:
        return dpo_loss(*self.both(batch), self.beta)

    def both(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log probabilities [2N] under (policy, reference)."""
        given, labels = self.inputs_of(batch)
        with self.autocast():
            policy = log_probabilities(self.forward(**given)["logits"], labels)
            with torch.no_grad():
                reference = log_probabilities(self.reference_logits(given), labels)
        return policy, reference

    def reference_logits(self, given: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.reference is not None:
            return self.reference(**given)["logits"]
        with self.without_adapter() as off:
            return torch.func.functional_call(self.module, off, (), given)["logits"]

    @contextmanager
    def without_adapter(self) -> Iterator[dict[str, torch.Tensor]]:
        """Weights in place of the adapter's under which the module is the model before training; dropout is off."""
        training = self.module.training
        self.module.eval()
        try:
            names = [k for k in self.adapted if k.endswith(f".{UP}")]
            yield {k: torch.zeros_like(self.module.get_parameter(k)) for k in names}
        finally:
            self.module.train(training)

    def count(self, batch: Batch) -> int:
        return len(batch["labels"]) // 2


class Distill(FineTune):
    """The student's logits against the teacher's, by `distillation_loss`."""

    def __init__(
        self,
        model: Model,
        data: Any,
        settings: Settings,
        folder: Path | None,
        lora: Lora | None,
        teacher: Model,
        temperature: float,
        hard: float,
        metrics: Metrics | None = None,
    ) -> None:
        _check_pair(model, teacher)
        check_fit(teacher, data, settings.length)
        check_tokenizer(teacher.tokenizer, data.tokenizer, whose="the teacher's")
        self.temperature, self.hard = temperature, hard
        super().__init__(model, data, settings, folder, lora, metrics=metrics)
        self.teacher = self.frozen(teacher)

    def head(self, graph: Graph) -> Graph:
        return graph

    def first_weights(self, graph: Graph) -> Weights:
        if self.model.weights is None and self.lora is None:
            return Weights.initialize(graph, self.settings.seed)
        return super().first_weights(graph)

    def loss(self, batch: Batch) -> torch.Tensor:
        given, labels = self.inputs_of(batch)
        with self.autocast():
            with torch.no_grad():
                theirs = self.teacher(**given)["logits"]
            mine = self.forward(**given)["logits"]
        return distillation_loss(mine, theirs, labels, self.temperature, self.hard)


def _check_pair(student: Model, teacher: Model) -> None:
    graphs = student.graph(), teacher.graph()
    for g in graphs:
        if "logits" not in g.outputs:
            raise ConfigError(f"{g.name} has no logits to distill")
    shapes = [(g.outputs["logits"].shape[-1], sorted(g.inputs)) for g in graphs]
    if shapes[0] != shapes[1]:
        (mine, a), (theirs, b) = shapes
        raise ConfigError(
            f"the student has {mine} tokens and inputs {', '.join(a)}; the teacher {theirs} and {', '.join(b)}"
        )
