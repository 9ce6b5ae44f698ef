"""What all kinds of rows have in common: numbers that are never given twice, and what may be asked of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ...ir.errors import RuntimeInputError
from .memory import Array
from .session import Session
from .state import Along

T = TypeVar("T")


class Numbered:
    """Rows of a session by number, up to `most` at once."""

    def __init__(self, session: Session, most: int) -> None:
        self.session, self.most = session, most
        self.next = 0

    def new(self, known: Mapping[int, object]) -> int:
        """The number of one more row. Raises RuntimeInputError where there is no place for it."""
        if len(known) >= self.most:
            raise RuntimeInputError(f"{self.most} rows are there, and there is place for no more")
        row, self.next = self.next, self.next + 1
        return row

    def one(self, tokens: Sequence[int] | Array, inputs: Mapping[str, Any] | None) -> Along:
        """Tokens [1,S] of one row with what comes along, by name."""
        return self.session.read_with(_ids(tokens)[None], inputs or {})

    def several(
        self, rows: Sequence[int], tokens: Sequence[int] | Array, inputs: Mapping[str, Any] | None
    ) -> dict[str, Array]:
        """One token for each of several rows, [n,1], with what comes along, by name."""
        ids = _ids(tokens)
        if len(rows) != len(ids) or len({*rows}) < len(rows):
            raise RuntimeInputError(f"{len(ids)} tokens were given for the rows {list(rows)}")
        return self.session.read_with(ids[:, None], inputs or {})


def _ids(tokens: Sequence[int] | Array) -> Array:
    ids = np.asarray(tokens)
    if ids.ndim != 1 or ids.size == 0:
        raise RuntimeInputError(f"tokens have shape {list(ids.shape)}, expected at least one in a list")
    return ids


def known(rows: Mapping[int, T], row: int) -> T:
    """What is kept of a row. Raises RuntimeInputError for one that has left, or never was."""
    if row not in rows:
        raise RuntimeInputError(f"there is no row {row}: it has left, or never joined")
    return rows[row]


def check_length(length: int, now: int) -> None:
    """Raises RuntimeInputError for a length that a row of `now` tokens cannot be cut to."""
    if not 1 <= length <= now:
        raise RuntimeInputError(f"a row of {now} tokens cannot be cut to {length}")
