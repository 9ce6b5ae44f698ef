"""Rows over the graph that takes masks: each has a state of its own, and those that step together lie side by side.

Every call gives new buffers, so rows are joined into a batch, and taken out of it, only where other rows step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .memory import Array
from .numbered import Numbered, check_length, known
from .padded import Padded
from .pool import Part
from .results import EVERYTHING, TOKEN, Want
from .session import Session
from .state import Along, stream_of


class Masked(Numbered):
    """`Rows` whose answers come from the graph that takes masks.

    states: of each row that is alone; those of `group` lie side by side in `batch`, in this order.
    """

    def __init__(self, session: Session, most: int) -> None:
        super().__init__(session, most)
        self.alone = _alone(session)
        self.whole = "each row has a state of its own"
        self.states: dict[int, Padded] = {}
        self.fixed: dict[int, dict[str, Array]] = {}
        self.group: list[int] = []
        self.batch: Padded | None = None

    # -- rows ------------------------------------------------------------------------------------------------------

    @property
    def bytes(self) -> int:
        return sum(s.bytes for s in (*self.states.values(), *([self.batch] if self.batch is not None else [])))

    def join(self, inputs: Mapping[str, Any] | None = None) -> int:
        fixed = self.session.fixed(inputs or {})
        row = self.new(self.fixed)
        self.fixed[row], self.states[row] = fixed, self.session.new_padded()
        return row

    def fork(self, row: int) -> int:
        state, new = self.own(row), self.new(self.fixed)
        # A call gives new buffers and leaves the old ones, so both rows may hold the same.
        self.states[new], self.fixed[new] = state.twin(), self.fixed[row]
        return new

    def leave(self, row: int) -> None:
        known(self.fixed, row)
        self.apart()
        del self.states[row], self.fixed[row]

    def length(self, row: int) -> int:
        known(self.fixed, row)
        if row in self.group and self.batch is not None:
            return int(self.batch.lengths[self.group.index(row)])
        return int(self.states[row].lengths.sum())

    def truncate(self, row: int, length: int) -> None:
        check_length(length, self.length(row))
        self.own(row).truncate(np.array([length]))

    def own(self, row: int) -> Padded:
        """The state of one row, taken out of the batch."""
        known(self.fixed, row)
        if row in self.group:
            self.apart()
        return self.states[row]

    def apart(self) -> None:
        """Give every row of the batch a state of its own again."""
        if self.batch is not None:
            self.states |= {row: self.batch.taken(i) for i, row in enumerate(self.group)}
        self.group, self.batch = [], None

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(
        self, row: int, tokens: Sequence[int] | Array, *, every: bool = False, inputs: Mapping[str, Any] | None = None
    ) -> Array:
        return self.more(row, self.one(tokens, inputs), len(tokens), every=every)[0]

    def more(self, row: int, along: Along, count: int, *, every: bool = False) -> Array:
        state, counts = self.own(row), np.array([count])
        if len(state.lengths):
            return state.extend(along, counts, every=every)
        return state.start(along, counts, self.fixed[row], every=every)

    def step(
        self, rows: Sequence[int], tokens: Sequence[int] | Array, inputs: Mapping[str, Any] | None = None
    ) -> Array:
        return self._step(rows, tokens, inputs, EVERYTHING)

    def step_greedy(
        self, rows: Sequence[int], tokens: Sequence[int] | Array, inputs: Mapping[str, Any] | None = None
    ) -> Array:
        return self._step(rows, tokens, inputs, TOKEN)

    def _step(
        self, rows: Sequence[int], tokens: Sequence[int] | Array, inputs: Mapping[str, Any] | None, want: Want
    ) -> Array:
        along = self.several(rows, tokens, inputs)
        if not self.together(rows):
            parts = [{k: v[i : i + 1] for k, v in along.items()} for i in range(len(rows))]
            return want.of(np.concatenate([self.more(row, part, 1) for row, part in zip(rows, parts, strict=True)]))
        if {*self.group} != {*rows} or self.batch is None:
            self.apart()
            self.group, self.batch = list(rows), Padded.together_of([self.states.pop(row) for row in rows])
        order = [rows.index(row) for row in self.group]
        found = self.batch.extend({k: v[order] for k, v in along.items()}, np.ones(len(rows), np.int64))
        places = [self.group.index(row) for row in rows]
        return want.of(found[places])

    def together(self, rows: Sequence[int]) -> bool:
        """Whether these rows can step in one call: their model allows it, all have begun, their sources are alike."""
        if self.alone or len(rows) < 2 or any(self.length(row) == 0 for row in rows):
            return False
        shapes = [{k: v.shape for k, v in self.fixed[row].items()} for row in rows]
        return all(s == shapes[0] for s in shapes)

    def ordered(self, rows: Sequence[int]) -> list[int]:
        return list(self.group) if {*rows} == {*self.group} else list(rows)

    # -- what others may go on from ----------------------------------------------------------------------------------

    def part(self, row: int, start: int, stop: int) -> Part:
        return Part([], stop - start)

    def state(self, row: int) -> Part:
        state = self.own(row)
        return Part([state.pasts[s.input] for s in state.slots], int(state.lengths[0]))

    def resume(self, row: int, parts: Sequence[Part], state: Part | None, length: int) -> None:
        assert state is not None, "rows of their own states go on from whole ones"
        self.own(row).resume(state.buffers, length, self.fixed[row])


def _alone(session: Session) -> str:
    """Why rows of different lengths are computed one at a time; "" where they are not."""
    contract = session.contract
    if contract.alone:
        return contract.alone
    hidden = stream_of(contract).mask in contract.inputs[contract.masked]
    padded = any(s.axis is not None and s.output for s in contract.slots)
    return "" if hidden or not padded else "the model has no mask, which would hide the padding of shorter rows"
