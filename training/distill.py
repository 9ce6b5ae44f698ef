"""Knowledge distillation: a small model learns the probabilities of a larger one. (Hinton et al. 2015)"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..data.batch import IGNORED, Batch, check_tokenizer, divided, labels_of
from ..frontends.dsl import Model
from ..frontends.task import LABELS, LOGITS
from ..ir.errors import ConfigError
from ..ir.graph import Graph
from .frozen_model import frozen_module
from .learner import Learner
from .source import Source, check_fit


def distillation_loss(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float = 2.0, hard: float = 0.5
) -> torch.Tensor:
    """(1 - hard) * T^2 * KL(teacher || student at temperature T) + hard * cross-entropy with the labels, in f32.

    student, teacher: logits [B,S,V]; labels i64 [B,S], of which IGNORED ones count in neither part; both are means
    over the others. T^2 keeps the gradient of the first part at the scale of the second.
    """
    valid = labels != IGNORED
    mine, theirs, label = student[valid].float(), teacher[valid].float(), labels[valid]
    functional = torch.nn.functional
    soft = functional.kl_div(
        functional.log_softmax(mine / temperature, -1),
        functional.log_softmax(theirs / temperature, -1),
        reduction="sum",
        log_target=True,
    )
    truth = functional.cross_entropy(mine, label, reduction="sum")
    return ((1 - hard) * temperature**2 * soft + hard * truth) / max(len(label), 1)


class DistillationLoss:
    """`distillation_loss` of the learner's logits against those of `teacher`.

    Raises ConfigError if student and teacher do not have the same vocabulary and inputs, or the data does not fit.
    """

    rows_per_unit = 1

    def __init__(
        self, student: Model, teacher: Model, source: Source, length: int, temperature: float, hard: float
    ) -> None:
        _check_pair(student, teacher)
        check_fit(teacher, source, length)
        if source.tokenizer is None:
            raise ConfigError("distillation needs texts, not arrays")
        check_tokenizer(teacher.tokenizer, source.tokenizer, whose="the teacher's")
        self.teacher, self.source, self.temperature, self.hard = teacher, source, temperature, hard
        self.module: torch.nn.Module | None = None

    def graph(self, logits: Graph) -> Graph:
        return logits

    def prepare(self, learner: Learner) -> None:
        self.module = frozen_module(self.teacher, self.source, learner)

    def loss(self, learner: Learner, batch: Batch) -> torch.Tensor:
        assert self.module is not None
        given = learner.inputs_of(batch, LABELS)
        labels = given.pop(LABELS)
        with learner.autocast():
            with torch.no_grad():
                theirs = self.module(**given)[LOGITS]
            mine = learner.forward(**given)[LOGITS]
        return distillation_loss(mine, theirs, labels, self.temperature, self.hard)

    def count(self, batch: Batch) -> int:
        return labels_of(batch)

    def divide(self, batch: Batch, number: int) -> Sequence[Batch]:
        return divided(batch, number)


def _check_pair(student: Model, teacher: Model) -> None:
    graphs = student.graph(), teacher.graph()
    for g in graphs:
        if LOGITS not in g.outputs:
            raise ConfigError(f"{g.name} has no logits to distill")
    shapes = [(g.outputs[LOGITS].shape[-1], sorted(g.inputs)) for g in graphs]
    if shapes[0] != shapes[1]:
        (mine, a), (theirs, b) = shapes
        raise ConfigError(
            f"the student has {mine} tokens and inputs {', '.join(a)}; the teacher {theirs} and {', '.join(b)}"
        )
