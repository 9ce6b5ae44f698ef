"""Measuring on the held-out part: loss, what follows from it, and when a run has stopped getting better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..backends.torch import to_inputs
from ..data.batch import IGNORED, Batch
from .layout import Spread, local
from .log import perplexity
from .loss import with_loss

if TYPE_CHECKING:
    from .loop import Metrics, Run

TELLING = ("masked-lm", "sequence-classification")
"""Tasks whose share of right answers tells something; of the others, perplexity does."""


class Evaluation:
    """Measures a run. best: lowest held-out loss so far; waited: measurements since."""

    def __init__(self, run: Run, metrics: Metrics | None) -> None:
        self.of, self.metrics = run, metrics
        self.best, self.waited = math.inf, 0
        self._second: Any = None

    def run(self) -> tuple[float | None, dict[str, float]]:
        """(mean loss in nats per held-out label, metrics by name); None without a held-out part."""
        run, metrics = self.of, dict[str, float]()
        loss = None
        if len(run.source.held_out) > 0:
            loss, metrics = self.measure()
            self.waited = 0 if loss < self.best else self.waited + 1
            self.best = min(self.best, loss)
        if self.metrics is not None:
            measure, model = self.metrics, run.now()
            metrics |= run.world.told(lambda: dict(measure(model)))
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
        total, count, right, answers = 0.0, 0.0, 0.0, 0.0
        telling = run.model.task in TELLING
        run.module.eval()
        if (telling or self.smoothed) and not run.world.alone:
            self.copy_weights()
        with torch.no_grad():
            for batch in run.source.held_out_batches(s.batch, s.length):
                for part, number in run.shares(batch, 1):
                    total += self.loss(part).item() * number
                    count += number
                    if telling:
                        hits, of = self.hits(part)
                        right, answers = right + hits * bool(number), answers + of * bool(number)
        if run.world.sharded:
            # FSDP keeps the outer weights gathered until a backward pass, though they may change before the next one.
            run.module.reshard()
        total, count, right, answers = run.world.sum(total, count, right, answers)
        loss = total / max(count, 1)
        return loss, {"accuracy": right / max(answers, 1)} if telling else {"perplexity": perplexity(loss)}

    @property
    def smoothed(self) -> bool:
        """Whether training makes another loss small than that of the labels alone."""
        return bool(self.of.settings.label_smoothing) and "labels" in self.of.inputs

    def loss(self, batch: Batch) -> torch.Tensor:
        """What training makes small, but of the labels alone: perplexity knows no smoothed ones."""
        return self.answers(batch)["loss"] if self.smoothed else self.of.loss(batch)

    def hits(self, batch: Batch) -> tuple[int, int]:
        """(labels that have the highest logit, labels that count)."""
        labels = torch.from_numpy(batch["labels"])
        found, counts = self.answers(batch)["logits"].argmax(-1).cpu(), labels != IGNORED
        return int(((found == labels) & counts).sum()), int(counts.sum())

    def answers(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Logits and loss from a second module, with the weights of the one that is trained."""
        run = self.of
        given = to_inputs({k: batch[k] for k in [*run.inputs, "labels"]}, run.settings.device)
        with run.autocast():
            if not run.world.alone:
                return self.second(**given)
            return torch.func.functional_call(self.second, run.module.state_dict(keep_vars=True), (), given)

    @property
    def second(self) -> Any:
        """A module that gives both; a single process does not use its weights."""
        if self._second is None:
            graph = with_loss(self.of.learner(), keep_logits=True)
            spread = Spread(self.of.world, graph)
            self._second = spread.shard(spread.build(graph, self.of.weights)).eval()
        return self._second

    def copy_weights(self) -> None:
        """Give the second module the weights of the run: on each process the part that lies there."""
        now = self.of.module.state_dict()
        for k, t in self.second.state_dict().items():
            local(t).copy_(local(now[k]))
