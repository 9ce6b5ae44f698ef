"""Rows that come and go: each remembers its own tokens, and steps run those together that are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ...ir.errors import RuntimeInputError
from .memory import Array
from .session import Session
from .state import State


class Rows(Protocol):
    """Up to `most` rows over one session. A row is known by the number that `join` gave it, until it leaves.

    alone: why rows are computed one at a time ("": together). Every answer is that of the row alone, whatever the
    others have read. Not to be used from several threads at once.
    """

    most: int
    alone: str

    def join(self, inputs: Mapping[str, Any] | None = None) -> int:
        """A new row. inputs: what stays for the row, [1,...] by name: the source of an encoder-decoder, and inputs
        beside the tokens. Raises RuntimeInputError where `most` rows are there."""
        ...

    def read(
        self, row: int, tokens: Sequence[int] | Array, *, every: bool = False, inputs: Mapping[str, Any] | None = None
    ) -> Array:
        """Add tokens [S] to a row; logits f32 [V] after the last, or with `every` [S,V] after each.

        inputs: what comes along with the tokens, [1,S,...] by name. The result may be written over by the next call.
        """
        ...

    def step(
        self, rows: Sequence[int], tokens: Sequence[int] | Array, inputs: Mapping[str, Any] | None = None
    ) -> Array:
        """Add one token to each of some rows; logits f32 [n,V], in memory that the next call may write over."""
        ...

    def truncate(self, row: int, length: int) -> None:
        """Forget all but the first `length` tokens of a row. Raises RuntimeInputError where a state cannot be cut."""
        ...

    def fork(self, row: int) -> int:
        """A new row that has read what `row` has."""
        ...

    def leave(self, row: int) -> None:
        """Forget a row; its place is free."""
        ...

    def length(self, row: int) -> int:
        """Tokens that a row has read."""
        ...


def rows_of(session: Session, most: int) -> Rows:
    """Rows over a session, which has its buffers for itself."""
    return Singles(session, most)


class Singles:
    """Rows that are computed one at a time, each over a state of its own."""

    def __init__(self, session: Session, most: int, alone: str = "rows are computed one at a time") -> None:
        self.session, self.most, self.alone = session, most, alone
        self.states: dict[int, State] = {}
        self.fixed: dict[int, dict[str, Array]] = {}
        self.next = 0

    def join(self, inputs: Mapping[str, Any] | None = None) -> int:
        if len(self.states) >= self.most:
            raise RuntimeInputError(f"there are {self.most} rows already")
        row, self.next = self.next, self.next + 1
        self.fixed[row] = self.session.fixed(inputs or {})
        self.states[row] = self.session.new_state()
        return row

    def read(
        self, row: int, tokens: Sequence[int] | Array, *, every: bool = False, inputs: Mapping[str, Any] | None = None
    ) -> Array:
        ids = np.asarray(tokens, np.int64)[None]
        if every:
            return np.stack([self._read(row, ids[:, i : i + 1], {}) for i in range(ids.shape[1])])
        return self._read(row, ids, inputs or {})

    def _read(self, row: int, ids: Array, inputs: Mapping[str, Any]) -> Array:
        state, counts = self.states[row], np.array([ids.shape[1]])
        along = self.session.read_with(ids, inputs)
        if len(state.lengths):
            return state.extend(along, counts)[0]
        return state.start(along, counts, self.fixed[row])[0]

    def step(
        self, rows: Sequence[int], tokens: Sequence[int] | Array, inputs: Mapping[str, Any] | None = None
    ) -> Array:
        return np.stack([self.read(row, [int(token)]) for row, token in zip(rows, tokens, strict=True)])

    def truncate(self, row: int, length: int) -> None:
        self.states[row].truncate(np.array([length]))

    def fork(self, row: int) -> int:
        raise RuntimeInputError("rows of this model cannot be copied")

    def leave(self, row: int) -> None:
        del self.states[row], self.fixed[row]

    def length(self, row: int) -> int:
        return int(self.states[row].lengths.sum())
