"""What a text has to look like, told token by token: which may come next, and whether it is complete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .sampling import Array


class Constraint(Protocol):
    """The state of one text. A new one for every text; not to be used from several threads at once."""

    @property
    def done(self) -> bool:
        """Whether the text is complete and nothing more may come."""
        ...

    def allowed(self) -> Array:
        """Which tokens may come next, bool [V]; an end token where the text may end here. At least one may."""
        ...

    def accept(self, token: int) -> None:
        """The next token, one of those that are allowed; no end token."""
        ...


def restrict(logits: Array, constraints: Sequence[Constraint | None]) -> Array:
    """Logits [B,V] with -inf for what the constraint of a row does not allow; tokens it does not know are not."""
    if not any(c is not None for c in constraints):
        return logits
    found = logits.copy()
    for row, constraint in zip(found, constraints, strict=True):
        if constraint is not None:
            mask = constraint.allowed()[: len(row)]
            row[: len(mask)][~mask] = -np.inf
            row[len(mask) :] = -np.inf
    return found
