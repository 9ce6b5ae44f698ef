"""Measuring on the held-out part: loss, what follows from it, and when a run has stopped getting better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch

from ..backends.torch.untyped import from_array
from ..data.batch import IGNORED, Batch
from ..frontends.dsl import Model
from ..frontends.task import LABELS, LOGITS
from .layout import Layout, local
from .learner import Learner
from .log import perplexity
from .loss import LOSS, with_loss
from .objective import LabelLoss, Objective, OwnLoss, shares_of
from .source import Source

Metrics = Callable[[Model], Mapping[str, float]]
"""What a user measures of the model as it is, by name."""

TELLING = ("masked-lm", "sequence-classification", "arrays")
"""Tasks of data whose share of right answers tells something; of the others, perplexity does."""


class Evaluator:
    """Measures a learner. best: lowest held-out loss so far; waited: measurements since."""

    def __init__(self, learner: Learner, objective: Objective, source: Source, metrics: Metrics | None = None) -> None:
        self.learner, self.objective, self.source, self.metrics = learner, objective, source, metrics
        self.best, self.waited = math.inf, 0

    def measure(self) -> tuple[float | None, dict[str, float]]:
        """(mean loss in nats per held-out label, metrics by name); None without a held-out part."""
        loss, metrics = None, dict[str, float]()
        if len(self.source.held_out) > 0:
            loss, metrics = self._measure_held_out()
            self.waited = 0 if loss < self.best else self.waited + 1
            self.best = min(self.best, loss)
        if self.metrics is not None:
            measure, model = self.metrics, self.learner.snapshot().model
            metrics |= self.learner.world.told(lambda: dict(measure(model)))
        return loss, metrics

    @property
    def exhausted(self) -> bool:
        """Whether the run has waited long enough for a better loss."""
        patience = self.learner.settings.patience
        return bool(patience) and self.waited >= patience

    @property
    def worth_keeping(self) -> bool:
        """Whether the weights of the last measurement are the ones to keep: the last, or with patience the best."""
        return not self.learner.settings.patience or self.waited == 0

    def state(self) -> dict[str, Any]:
        return {"best": None if math.isinf(self.best) else self.best, "waited": self.waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.best = math.inf if state["best"] is None else float(state["best"])
        self.waited = int(state["waited"])

    def _measure_held_out(self) -> tuple[float, dict[str, float]]:
        learner, settings, world = self.learner, self.learner.settings, self.learner.world
        total, count, right, answers = 0.0, 0.0, 0.0, 0.0
        telling = self.source.task in TELLING and isinstance(self.objective, LabelLoss)
        learner.module.eval()
        if (telling or self._smoothed) and not world.alone:
            self._copy_weights()
        with torch.no_grad():
            for batch in self.source.held_out_batches(settings.batch, settings.length):
                for share, number in shares_of(self.objective, world, batch, 1):
                    total += self._loss(share).item() * number
                    count += number
                    if telling:
                        hits, of = self._hits(share)
                        right, answers = right + hits * bool(number), answers + of * bool(number)
        if world.sharded:
            # FSDP keeps the outer weights gathered until a backward pass, though they may change before the next one.
            learner.module.reshard()
        total, count, right, answers = world.sum(total, count, right, answers)
        loss = total / max(count, 1)
        if telling:
            return loss, {"accuracy": right / max(answers, 1)}
        return loss, {} if isinstance(self.objective, OwnLoss) else {"perplexity": perplexity(loss)}

    @property
    def _smoothed(self) -> bool:
        """Whether training makes another loss small than that of the labels alone."""
        return bool(self.learner.settings.label_smoothing) and LABELS in self.learner.inputs

    def _loss(self, batch: Batch) -> torch.Tensor:
        """What training makes small, but of the labels alone: perplexity knows no smoothed ones."""
        return self._answers(batch)[LOSS] if self._smoothed else self.objective.loss(self.learner, batch)

    def _hits(self, batch: Batch) -> tuple[int, int]:
        """(labels that have the highest logit, labels that count)."""
        labels = from_array(batch[LABELS])
        found, counts = self._answers(batch)[LOGITS].argmax(-1).cpu(), labels != IGNORED
        return int(((found == labels) & counts).sum()), int(counts.sum())

    def _answers(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Logits and loss from a second module, with the weights of the one that is trained."""
        learner = self.learner
        given = learner.inputs_of(batch, LABELS)
        with learner.autocast():
            if not learner.world.alone:
                return self._second(**given)
            return torch.func.functional_call(self._second, learner.module.state_dict(keep_vars=True), (), given)

    @cached_property
    def _second(self) -> Any:
        """A module that gives both; a single process does not use its weights."""
        learner = self.learner
        graph = with_loss(learner.trained.graph, keep_logits=True)
        layout = Layout(learner.world, graph)
        return layout.shard(layout.build(graph, learner.weights)).eval()

    def _copy_weights(self) -> None:
        """Give the second module the weights of the learner: on each process the part that lies there."""
        now = self.learner.module.state_dict()
        for k, t in self._second.state_dict().items():
            local(t).copy_(local(now[k]))
