"""Rows that come and go: each remembers its own tokens, and steps run those together that are named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ...ir.errors import RuntimeInputError
from ...ir.slots import Growth
from .memory import Array
from .numbered import Numbered, check_length, known
from .pool import Part, Pool, signature
from .results import EVERYTHING, TOKEN, Want
from .rows_masked import Masked
from .session import Session


class Rows(Protocol):
    """Up to `most` rows over one session. A row is known by the number that `join` gave it, until it leaves.

    alone: why rows are computed one at a time ("": together). whole: why a row can only go on from a state that was
    kept, and not from any token that it has in common with another ("": it can). Every answer is that of the row
    alone, whatever the others have read. Not to be used from several threads at once.
    """

    most: int
    alone: str
    whole: str

    @property
    def bytes(self) -> int:
        """Bytes of the buffers of state, whether written to or not."""
        ...

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

    def step_greedy(
        self, rows: Sequence[int], tokens: Sequence[int] | Array, inputs: Mapping[str, Any] | None = None
    ) -> Array:
        """`step`, of which only the likeliest next token of each row leaves the device, i64 [n]; of equal ones the
        first, and -1 where the largest logit is not finite."""
        ...

    def ordered(self, rows: Sequence[int]) -> list[int]:
        """The same rows in the order in which a step needs no copy of its logits."""
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

    def part(self, row: int, start: int, stop: int) -> Part:
        """A copy of what slots that keep all tokens hold of some."""
        ...

    def state(self, row: int) -> Part:
        """A copy of what the other slots hold."""
        ...

    def resume(self, row: int, parts: Sequence[Part], state: Part | None, length: int) -> None:
        """Lay what was kept of `length` tokens into a row that has read nothing."""
        ...

    def length(self, row: int) -> int:
        """Tokens that a row has read."""
        ...


def rows_of(session: Session, most: int) -> Rows:
    """Rows over a session, with buffers of their own. Raises RuntimeInputError for a model without a cache."""
    if most < 1:
        raise RuntimeInputError(f"rows are {most}, expected at least 1")
    return Pooled(session, most) if session.contract.lengths else Masked(session, most)


class Pooled(Numbered):
    """Rows in pools, one for each shape that sources have; rows of one pool step in one call."""

    alone = ""

    def __init__(self, session: Session, most: int) -> None:
        super().__init__(session, most)
        partial = [s for s in session.contract.slots if s.growth in (Growth.window, Growth.replace)]
        self.whole = f"{partial[0].input} does not keep all tokens" if partial else ""
        self.pools: dict[object, Pool] = {}
        self.of: dict[int, Pool] = {}

    @property
    def bytes(self) -> int:
        return sum(p.bytes for p in self.pools.values())

    def join(self, inputs: Mapping[str, Any] | None = None) -> int:
        fixed = self.session.fixed(inputs or {})
        row = self.new(self.of)
        shapes = signature(fixed)
        if shapes not in self.pools:
            # Sources of a new shape take the memory of those that nobody has any more.
            self.pools = {k: p for k, p in self.pools.items() if p.places}
            self.pools[shapes] = self.session.new_pool(self.most, fixed)
        self.of[row] = self.pools[shapes]
        self.of[row].join(row, fixed)
        return row

    def read(
        self, row: int, tokens: Sequence[int] | Array, *, every: bool = False, inputs: Mapping[str, Any] | None = None
    ) -> Array:
        found = known(self.of, row).read(row, self.one(tokens, inputs), len(tokens), every=every)
        return found if every else found[0]

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
        pools = [known(self.of, row) for row in rows]
        if all(p is pools[0] for p in pools):
            return pools[0].step(rows, along, want)
        found: dict[int, Array] = {}
        for pool in dict.fromkeys(pools):
            chosen = [i for i, p in enumerate(pools) if p is pool]
            told = pool.step([rows[i] for i in chosen], {k: v[chosen] for k, v in along.items()}, want)
            found |= dict(zip(chosen, told.copy(), strict=True))
        return np.stack([found[i] for i in range(len(rows))])

    def ordered(self, rows: Sequence[int]) -> list[int]:
        def key(row: int) -> tuple[int, int]:
            return order.index(self.of[row]), self.of[row].places[row]

        order = [*self.pools.values()]
        for pool in order:
            pool.arrange([r for r in rows if self.of[r] is pool])
        return sorted(rows, key=key)

    def truncate(self, row: int, length: int) -> None:
        check_length(length, self.length(row))
        self.of[row].truncate(row, length)

    def fork(self, row: int) -> int:
        pool, new = known(self.of, row), self.new(self.of)
        pool.fork(row, new)
        self.of[new] = pool
        return new

    def leave(self, row: int) -> None:
        pool = known(self.of, row)
        pool.leave(row)
        del self.of[row]
        if pool.vast and not pool.places:  # What one long row took is not kept for good.
            self.pools = {k: p for k, p in self.pools.items() if p is not pool}

    def part(self, row: int, start: int, stop: int) -> Part:
        return known(self.of, row).part(row, start, stop)

    def state(self, row: int) -> Part:
        return known(self.of, row).state(row)

    def resume(self, row: int, parts: Sequence[Part], state: Part | None, length: int) -> None:
        known(self.of, row).resume(row, parts, state, length)

    def length(self, row: int) -> int:
        return int(known(self.of, row).lengths[self.of[row].places[row]])
