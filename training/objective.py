"""What training makes small: a graph, the loss of a batch, and the number of things that the loss is the mean of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from ..data.batch import Batch, divided, labels_of
from ..frontends.dsl import Config, Family, Model, Program
from ..frontends.losses import loss_of, with_own_loss
from ..ir.errors import ConfigError
from ..ir.graph import Graph
from .learner import Learner
from .loss import LOSS, with_loss
from .world import World


class Objective(Protocol):
    """One kind of loss. rows_per_unit: rows of a batch per unit of the setting `batch`."""

    @property
    def rows_per_unit(self) -> int: ...

    def graph(self, logits: Graph) -> Graph:
        """The graph to train, from one that ends in the logits."""
        ...

    def prepare(self, learner: Learner) -> None:
        """Build what the loss needs beside the learner, on its device. Raises ConfigError if the two do not fit."""
        ...

    def loss(self, learner: Learner, batch: Batch) -> torch.Tensor:
        """The mean loss of a batch."""
        ...

    def count(self, batch: Batch) -> int:
        """How many equal terms the loss of a batch is the mean of."""
        ...

    def divide(self, batch: Batch, number: int) -> Sequence[Batch]:
        """The batch in at most `number` nearly equal shares."""
        ...


class LabelLoss:
    """Cross-entropy with the labels, computed inside the graph.

    smoothing: share of the target that is spread over all tokens.
    """

    rows_per_unit = 1

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def graph(self, logits: Graph) -> Graph:
        return with_loss(logits, label_smoothing=self.smoothing)

    def prepare(self, learner: Learner) -> None:
        pass

    def loss(self, learner: Learner, batch: Batch) -> torch.Tensor:
        with learner.autocast():
            return learner.forward(**learner.inputs_of(batch))[LOSS]

    def count(self, batch: Batch) -> int:
        return labels_of(batch)

    def divide(self, batch: Batch, number: int) -> Sequence[Batch]:
        return divided(batch, number)


class OwnLoss:
    """The loss that a model says itself, computed inside the graph.

    Batches hold the inputs of the model and what its loss takes beside them.
    """

    rows_per_unit = 1

    def __init__(self, source: Family | Program, config: Config | None) -> None:
        self.source, self.config = source, config

    def graph(self, logits: Graph) -> Graph:
        new = logits.copy()
        loss = loss_of(self.source, new, self.config)
        new.outputs.clear()
        new.output(LOSS, loss)
        return new

    def prepare(self, learner: Learner) -> None:
        if learner.settings.label_smoothing:
            raise ConfigError(f"label_smoothing is of the loss of labels, but {self.source.name} has a loss of its own")

    def loss(self, learner: Learner, batch: Batch) -> torch.Tensor:
        with learner.autocast():
            return learner.forward(**learner.inputs_of(batch))[LOSS]

    def count(self, batch: Batch) -> int:
        return len(next(iter(batch.values())))

    def divide(self, batch: Batch, number: int) -> Sequence[Batch]:
        return divided(batch, number)


def objective_of(model: Model, label_smoothing: float = 0.0) -> Objective:
    """The loss of a model's family, if it has one, else that of the labels."""
    source = with_own_loss(model)
    if source is not None:
        return OwnLoss(source, model.config)
    return LabelLoss(label_smoothing)


def shares_of(objective: Objective, world: World, batch: Batch, number: int) -> list[tuple[Batch, int]]:
    """At most `number` shares of a batch that this process computes one after another, and what each counts for.

    All processes get equally many: where a batch has too few rows, some get one that counts for nothing.
    """
    found = [(share, objective.count(share)) for share in objective.divide(batch, number * world.data)]
    return world.mine(found + [(found[0][0], 0)] * (-len(found) % world.data))
