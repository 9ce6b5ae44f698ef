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
                total += run.loss(batch).item() * number
                count += number
                if telling:
                    hits, of = self.hits(batch)
                    right, answers = right + hits, answers + of
        loss = total / max(count, 1)
        return loss, {"accuracy": right / max(answers, 1)} if telling else {"perplexity": perplexity(loss)}

    def hits(self, batch: Batch) -> tuple[int, int]:
        """(labels that have the highest logit, labels that count)."""
        run = self.of
        module = self.answers()
        given = to_inputs({k: batch[k] for k in run.inputs}, run.settings.device)
        with run.autocast():
            found = torch.func.functional_call(module, dict(run.module.named_parameters()), (), given)["logits"]
        counts = given["labels"] != IGNORED
        return int(((found.argmax(-1) == given["labels"]) & counts).sum()), int(counts.sum())

    def answers(self) -> torch.nn.Module:
        """A second module that also gives the logits; its own weights are not used."""
        if self._answers is None:
            run = self.of
            graph = train_pipeline(with_loss(run.plain_graph(), keep_logits=True))
            self._answers = to_torch(graph, run.current()).to(run.settings.device).eval()
        return self._answers
