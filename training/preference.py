"""The objective of direct preference optimisation: chosen answers against rejected ones (see training/dpo.py)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from ..data.batch import Batch, divided
from ..frontends.dsl import Model
from ..frontends.task import LABELS, LOGITS
from ..ir.errors import ConfigError
from ..ir.graph import Graph
from .dpo import dpo_loss, log_probabilities
from .frozen_model import frozen_module
from .learner import Learner
from .lora import LoraWeights
from .source import Source


class PreferenceLoss:
    """`dpo_loss` of the answers under the learner and under a reference: the model before training.

    lora: what is trained, if it is a LoRA; the reference is then the learner without it, else a copy of `model`.
    """

    rows_per_unit = 2

    def __init__(self, model: Model, source: Source, beta: float, lora: LoraWeights | None = None) -> None:
        self.model, self.source, self.beta, self.lora = model, source, beta, lora
        self.reference: torch.nn.Module | None = None

    def graph(self, logits: Graph) -> Graph:
        return logits

    def prepare(self, learner: Learner) -> None:
        if self.lora is not None and learner.world.sharded:
            raise ConfigError("the reference of a LoRA needs whole weights, which fsdp does not keep", hint="take ddp")
        if self.lora is None:
            self.reference = frozen_module(self.model, self.source, learner)

    def loss(self, learner: Learner, batch: Batch) -> torch.Tensor:
        return dpo_loss(*self.both(learner, batch), self.beta)

    def both(self, learner: Learner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log probabilities [2N] under (learner, reference)."""
        given = learner.inputs_of(batch, LABELS)
        labels = given.pop(LABELS)
        with learner.autocast():
            policy = log_probabilities(learner.forward(**given)[LOGITS], labels)
            with torch.no_grad():
                reference = log_probabilities(self._reference_logits(learner, given), labels)
        return policy, reference

    def _reference_logits(self, learner: Learner, given: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.reference is not None:
            return self.reference(**given)[LOGITS]
        assert self.lora is not None
        with _evaluating(learner.module):
            off = self.lora.switched_off(learner.module)
            return torch.func.functional_call(learner.module, off, (), given)[LOGITS]

    def count(self, batch: Batch) -> int:
        return len(batch[LABELS]) // 2

    def divide(self, batch: Batch, number: int) -> Sequence[Batch]:
        """Both halves are divided alike, so that a chosen answer stays with the rejected one."""
        middle = len(batch[LABELS]) // 2
        halves = ({k: v[:middle] for k, v in batch.items()}, {k: v[middle:] for k, v in batch.items()})
        pairs = zip(*(divided(half, number) for half in halves), strict=True)
        return [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in pairs]


@contextmanager
def _evaluating(module: torch.nn.Module) -> Generator[None]:
    """Dropout is off inside the block; a module has no other way to be told than its mode."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
