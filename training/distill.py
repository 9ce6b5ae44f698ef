"""Knowledge distillation: a small model learns the probabilities of a larger one. (Hinton et al. 2015)"""

from __future__ import annotations

import torch

from ..data.batch import IGNORED


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
