"""Measuring on the held-out part: loss, what follows from it, and when a run has stopped getting better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..backends.torch import to_inputs, to_torch
from ..passes.pipelines import train as train_pipeline
from .log import perplexity
from .loss import IGNORED, with_loss
from .source import Batch

if TYPE_CHECKING:
    from .loop import Metrics, Run

TELLING = ("masked-lm", "sequence-classification")
"""Tasks whose share of right answers tells something; of the others, perplexity does."""


class Evaluation:
    """Measures a run. best: lowest held-out loss so far; waited: measurements since."""

    def __init__(self, run: Run, metrics: Metrics | None) -> None:
        self.of, self.metrics = run, metrics
        self.best, self.waited, self.measured_at = math.inf, 0, 0
        self._answers: Any = None

    def run(self) -> tuple[float | None, dict[str, float]]:
        """(mean loss in nats per held-out label, metrics by name); None without a held-out part."""
        run, metrics = self.of, dict[str, float]()
        self.measured_at = run.done
        loss = None
        if len(run.source.held_out) > 0:
            loss, metrics = self.measure()
            self.waited = 0 if loss < self.best else self.waited + 1
            self.best = min(self.best, loss)
        if self.metrics is not None:
            metrics |= self.metrics(run.now())
        return loss, metrics

    @property
    def exhausted(self) -> bool:
        """Whether the run has waited long enough for a better loss."""
        patience = self.of.settings.patience
        return bool(patience) and self.waited >= patience

    @property
    def worth_keeping(self) -> bool:
        """Whether the weights of the last measurement are the ones to keep: the last, or with patience the best."""
        return not self.of.settings.patience or self.waited == 0

    def state(self) -> dict[str, Any]:
        return {"best": None if math.isinf(self.best) else self.best, "waited": self.waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.best = math.inf if state["best"] is None else float(state["best"])
        self.waited = int(state["waited"])

    def measure(self) -> tuple[float, dict[str, float]]:
        run, s = self.of, self.of.settings
        total, count, right, answers = 0.0, 0, 0, 0
        telling = run.model.task in TELLING
        run.module.eval()
        with torch.no_grad():
            for batch in run.source.held_out_batches(s.batch, s.length):
                number = run.count(batch)
                total += self.loss(batch).item() * number
                count += number
                if telling:
                    hits, of = self.hits(batch)
                    right, answers = right + hits, answers + of
        loss = total / max(count, 1)
        return loss, {"accuracy": right / max(answers, 1)} if telling else {"perplexity": perplexity(loss)}

    def loss(self, batch: Batch) -> torch.Tensor:
        """What training makes small, but of the labels alone: perplexity knows no smoothed ones."""
        run = self.of
        smoothed = run.settings.label_smoothing and "labels" in run.inputs
        return self.answers(batch)["loss"] if smoothed else run.loss(batch)

    def hits(self, batch: Batch) -> tuple[int, int]:
        """(labels that have the highest logit, labels that count)."""
        labels = torch.from_numpy(batch["labels"])
        found, counts = self.answers(batch)["logits"].argmax(-1).cpu(), labels != IGNORED
        return int(((found == labels) & counts).sum()), int(counts.sum())

    def answers(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Logits and loss from a second module, which takes the weights of the one that is trained."""
        run = self.of
        if self._answers is None:
            graph = train_pipeline(with_loss(run.learner(), keep_logits=True))
            self._answers = to_torch(graph, run.weights).to(run.settings.device).eval()
        weights = run.module.state_dict(keep_vars=True)
        given = to_inputs({k: batch[k] for k in [*run.inputs, "labels"]}, run.settings.device)
        with run.autocast():
            return torch.func.functional_call(self._answers, weights, (), given)
