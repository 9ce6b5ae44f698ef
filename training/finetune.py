"""Fine-tuning: all weights or a LoRA, on instructions, on pairs of answers (DPO), or from a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..backends.torch import state_of, to_inputs, to_torch
from ..frontends.dsl import Model
from ..ir.errors import ConfigError
from ..ir.files import staged
from ..ir.graph import Graph, Init
from ..ir.safetensors import write_file
from ..ir.tensors import ArrayTensor
from ..ir.weights import Weights
from ..passes import pipelines
from ..passes.adapt import UP, lora_params
from ..passes.freeze import codes_of, quantize_frozen
from .adapters import TENSORS, Adapter, Lora, base_weights
from .checkpoint import OPTIMIZER
from .corpus import Batch
from .distill import distillation_loss
from .dpo import Preferences, dpo_loss, log_probabilities
from .errors import TrainingError
from .loop import PRECISIONS, Run, Settings
from .loss import with_loss
from .progress import Display, Step

RATES = {"full": 2e-5, "lora": 2e-4, "dpo": 1e-6, "dpo lora": 2e-5}
"""Learning rates at their peak where none is given."""


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model; with a LoRA also the adapter, which is merged in `model` (computed when weights are read)."""

    model: Model
    adapter: Adapter | None = None


def finetune(
    model: Model, data: Any, *, lora: Lora | None = None, quantized: bool = False, steps: int, **settings: Any
) -> Tuned:
    """Train a model that has weights on `data`: Instructions, a Corpus, or anything with the interface of one.

    lora: train only this adapter (None: all weights). quantized: hold the frozen weights of linear layers in 8 bits
    meanwhile; the model that comes out has the adapter merged into the weights as they were. settings: see `plan`,
    and `folder`, `resume`, `progress` and `observe` as in `train`; `folder` gets a checkpoint, or with `lora` the
    adapter in PEFT's format, and the optimizer.
    Raises as `train` does, and WeightsError for a model without weights.
    """
    if quantized and lora is None:
        raise ConfigError("quantized weights cannot be trained: give a LoRA")
    return _run(FineTune, model, data, lora, "full", steps, settings, quantized=quantized)


def dpo(
    model: Model, data: Preferences, *, beta: float = 0.1, lora: Lora | None = None, steps: int, **settings: Any
) -> Tuned:
    """Train on pairs of answers against the model as it is now: with `lora` itself without the adapter, else a copy.

    beta: how strongly the model is held to the reference. A batch is `batch` pairs. The rest as for `finetune`.
    """
    if beta <= 0:
        raise ConfigError(f"beta is {beta}, expected more than 0")
    return _run(Dpo, model, data, lora, "dpo", steps, settings, beta=beta)


def distill(
    student: Model,
    teacher: Model,
    data: Any,
    *,
    temperature: float = 2.0,
    hard: float = 0.5,
    lora: Lora | None = None,
    steps: int,
    **settings: Any,
) -> Tuned:
    """Train `student` (with weights, or from nothing if it has none) on the probabilities of `teacher`.

    temperature, hard: see `distillation_loss`. The rest as for `finetune`. Raises ConfigError if the two do not have
    the same vocabulary and inputs.
    """
    if temperature <= 0 or not 0 <= hard <= 1:
        raise ConfigError(f"temperature is {temperature} and hard {hard}, expected more than 0 and 0 to 1")
    return _run(
        Distill, student, data, lora, "full", steps, settings, teacher=teacher, temperature=temperature, hard=hard
    )


def plan(
    kind: str,
    steps: int,
    *,
    batch: int = 8,
    length: int = 512,
    learning_rate: float | None = None,
    warmup: int | None = None,
    final: float = 0.0,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    clip: float = 1.0,
    seed: int = 0,
    precision: str = "f32",
    device: str | None = None,
    compile: bool = False,
    evaluate_every: int | None = None,
) -> Settings:
    """Settings of `train` as fine-tuning wants them. learning_rate: None is RATES[kind]; length: most tokens a row."""
    return Settings(
        steps,
        batch,
        length,
        RATES[kind] if learning_rate is None else learning_rate,
        steps // 20 if warmup is None else warmup,
        final,
        weight_decay,
        betas,
        clip,
        seed,
        precision,
        device or ("cuda" if torch.cuda.is_available() else "cpu"),
        compile,
        max(steps // 10, 1) if evaluate_every is None else evaluate_every,
    )


def _run(
    kind: type[FineTune],
    model: Model,
    data: Any,
    lora: Lora | None,
    rate: str,
    steps: int,
    settings: dict[str, Any],
    **objective: Any,
) -> Tuned:
    folder, resume = settings.pop("folder", None), settings.pop("resume", False)
    progress: bool = settings.pop("progress", True)
    observe: Callable[[Step], None] = settings.pop("observe", lambda step: None)
    name = rate if lora is None else "dpo lora" if rate == "dpo" else "lora"
    folder = None if folder is None else Path(folder)
    run = kind(model, data, plan(name, steps, **settings), folder, lora, **objective)
    if resume:
        run.resume()
    with Display(steps, progress) as display:
        for step in run:
            display.show(step)
            observe(step)
    return Tuned(run.best(), run.adapter)


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
    ) -> None:
        self.lora, self.quantized = lora, quantized
        self.axes: dict[str, int] = {}
        self.adapted: frozenset[str] = frozenset()
        super().__init__(model, data, settings, folder)

    def objective(self) -> Graph:
        graph = self.model.graph()
        if self.lora is not None:
            self.lora.insert(graph)
            self.adapted = frozenset(lora_params(graph))
        if self.quantized:
            self.axes = quantize_frozen(graph)
        return self.head(graph)

    def head(self, graph: Graph) -> Graph:
        """What is computed from the logits inside the graph."""
        return with_loss(graph)

    def first_weights(self, graph: Graph) -> Weights:
        base = base_weights(self.model)
        drawn = Weights.initialize(graph, self.settings.seed, Init("zeros")) if self.adapted else {}
        return base | codes_of(self.axes, base) | {k: drawn[k] for k in self.adapted}

    def trains(self, name: str) -> bool:
        return not self.adapted or name in self.adapted

    def snapshot(self) -> Model:
        if self.lora is None:
            return super().snapshot()
        state = state_of(self.module)
        weights = Weights({k: ArrayTensor(state[k].numpy().copy()) for k in sorted(self.adapted)})
        self.adapter = Adapter(self.lora, weights, str(self.model.folder or ""))
        return self.trained(base_weights(self.adapter.merged(self.model)))

    def best(self) -> Model:
        return super().best() if self.lora is None else self.good

    def save(self, folder: Path) -> None:
        if self.adapter is None:
            super().save(folder)
            return
        metadata = {"format": "pt", "step": str(self.done)}
        with staged(folder) as stage:
            self.adapter.write(stage, self.model, metadata)
            with stage.open(OPTIMIZER) as f:
                write_file(f, self.optimizer_state(), metadata, lambda name, size: None)

    def saved(self, folder: Path) -> tuple[Weights, Weights, int]:
        if self.lora is None:
            return super().saved(folder)
        adapter, moments = Adapter.load(folder), Weights.open(folder / OPTIMIZER)
        steps = [w.metadata.get("step", "?") for w in (adapter.weights, moments)]
        if steps[0] != steps[1] or not steps[0].isdigit():
            what = f"{TENSORS} is of step {steps[0]} and {OPTIMIZER} of step {steps[1]}: they do not belong together"
            raise TrainingError(what, place=str(folder))
        if adapter.lora != self.lora:
            raise TrainingError(f"holds {adapter.lora}, not {self.lora}", place=str(folder))
        return self.weights | adapter.weights, moments, int(steps[0])

    # -- logits, for losses outside the graph ------------------------------------------------------------------

    def inputs_of(self, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        given = to_inputs({k: batch[k] for k in [*self.inputs, "labels"]}, self.settings.device)
        labels = given.pop("labels")
        return given, labels

    def autocast(self) -> torch.autocast:
        narrow = PRECISIONS[self.settings.precision]
        return torch.autocast(self.settings.device.split(":")[0], narrow, enabled=narrow is not None)

    def frozen(self, model: Model) -> torch.nn.Module:
        """A module of another model that only gives logits."""
        graph = pipelines.encode(model.graph())
        module = to_torch(graph, base_weights(model)).to(self.settings.device)
        return module.eval().requires_grad_(False)


class Dpo(FineTune):
    """The log probabilities of both answers under the model and under the reference, and `dpo_loss` over them."""

    def __init__(
        self, model: Model, data: Any, settings: Settings, folder: Path | None, lora: Lora | None, beta: float
    ) -> None:
        self.beta = beta
        super().__init__(model, data, settings, folder, lora)
        self.reference = self.frozen(model) if lora is None else None

    def head(self, graph: Graph) -> Graph:
        return graph

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
    ) -> None:
        _check_pair(model, teacher)
        self.temperature, self.hard = temperature, hard
        super().__init__(model, data, settings, folder, lora)
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
