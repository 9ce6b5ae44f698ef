"""Places for rows in the buffers of slots: a row joins, is moved, copied and forgotten without touching the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ir.slots import Growth
from .capture import NEVER, Captures
from .contract import Contract
from .held import KINDS, Appended, Held, Replaced, Windowed, places_of, refusal
from .memory import Array, Buffer, Memory
from .pool_calls import ReadCall, StepCall
from .results import EVERYTHING, Results, Want
from .runtime import Loaded
from .state import check_cut, check_room

Row = int
"""The number of a row, which it keeps wherever it lies."""

_VAST = 8
"""How many times the places that buffers began with are more than is kept once no row is left."""


@dataclass(frozen=True)
class Part:
    """A piece of what rows have read, in buffers of its own, one for each slot that it holds something of."""

    buffers: list[Buffer]
    length: int

    @property
    def bytes(self) -> int:
        return sum(math.prod(b.shape) * b.dtype.itemsize for b in self.buffers)


class Pool:
    """Rows over the graph that takes lengths, whose sources all have one shape.

    A row lies in a place of every buffer. Those that step together lie in the first places, so that one binding serves
    every step of as many rows; whoever lies there and does not step is moved. A row of states that take turns has its
    newest one in buffer number turns[place]. One place more than rows is there to move through.
    """

    def __init__(
        self,
        loaded: Loaded,
        contract: Contract,
        memory: Memory,
        most: int,
        capacity: int,
        fixed: Mapping[str, Array],
        captures: Captures = NEVER,
    ) -> None:
        self.loaded, self.contract, self.memory, self.most, self.captures = loaded, contract, memory, most, captures
        self.size = self.first = min(capacity, contract.limit)
        self.rows: list[Row | None] = [None] * (most + 1)
        self.places: dict[Row, int] = {}
        self.lengths: Array = np.zeros(most + 1, np.int64)
        self.used: dict[int, Array] = {n: np.zeros(most + 1, np.int64) for n in (0, *contract.windows)}
        self.turns: Array = np.zeros(most + 1, np.int64)
        self.held: list[Held] = []
        for slot in contract.slots:
            if slot.growth is not Growth.once:
                places = places_of(slot, self.size, contract.limit)
                self.held.append(KINDS[slot.growth](slot, memory, most + 1, loaded.dtypes[slot.input], places))
        self.replaced = [h for h in self.held if isinstance(h, Replaced)]
        self.windowed = [h for h in self.held if isinstance(h, Windowed)]
        shapes = {k: v.shape[1:] for k, v in fixed.items() if k in loaded.inputs}
        self.fixed = {k: memory.allocate((most + 1, *s), loaded.dtypes[k]) for k, s in shapes.items()}
        self.steps: dict[tuple[int, int], StepCall] = {}
        self.logits: Buffer = StepCall.output(self)
        self.told: Results | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all buffers of state, whether written to or not."""
        fixed = sum(math.prod(b.shape) * b.dtype.itemsize for b in self.fixed.values())
        return sum(h.bytes for h in self.held) + fixed

    @property
    def vast(self) -> bool:
        """Whether buffers have grown to much more than they began with."""
        return self.size >= _VAST * self.first

    # -- rows come and go ----------------------------------------------------------------------------------------

    def join(self, row: Row, fixed: Mapping[str, Array]) -> None:
        place = self.free()
        for name, buffer in self.fixed.items():
            self.memory.write(self.memory.row(buffer, place), fixed[name])
        for held in self.replaced:
            first = fixed.get(held.slot.first) if held.slot.first else None
            zeros = np.zeros((), held.dtype)
            self.memory.write(self.memory.row(held.both[0], place), zeros if first is None else first)
        self.lay(row, place, 0, dict.fromkeys(self.used, 0), 0)

    def lay(self, row: Row, place: int, length: int, used: Mapping[int, int], turn: int) -> None:
        self.rows[place], self.places[row] = row, place
        self.lengths[place], self.turns[place] = length, turn
        for window, count in used.items():
            self.used[window][place] = count

    def leave(self, row: Row) -> None:
        self.rows[self.places.pop(row)] = None

    def fork(self, row: Row, new: Row) -> None:
        self.copy(self.places[row], new, self.free())

    def free(self, start: int = 0) -> int:
        """The first free place from `start` on; there is one more place than rows."""
        return self.rows.index(None, start)

    def copy(self, source: int, row: Row, target: int) -> None:
        """Lay a row into another place with all that lies in `source`."""
        memory, turn = self.memory, int(self.turns[source])
        for held in self.held:
            if isinstance(held, Replaced):
                buffer = held.both[turn]
                memory.copy(memory.row(buffer, source), memory.row(buffer, target))
            else:
                count, axis = int(self.used[held.slot.window][source]), held.slot.axis
                assert axis is not None, "what grows has an axis"
                from_, to = memory.row(held.buffer, source), memory.row(held.buffer, target)
                memory.shift(from_, 0, to, 0, count, row=0, axis=axis)
        for buffer in self.fixed.values():
            memory.copy(memory.row(buffer, source), memory.row(buffer, target))
        used = {n: int(u[source]) for n, u in self.used.items()}
        self.lay(row, target, int(self.lengths[source]), used, turn)

    def move(self, source: int, target: int) -> None:
        row = self.rows[source]
        assert row is not None and self.rows[target] is None, "a row moves to a free place"
        self.copy(source, row, target)
        self.rows[source] = None

    def arrange(self, rows: Sequence[Row]) -> None:
        """Bring these rows to the first places, in any order, with as few moves as can be."""
        count = len(rows)
        outside = sorted((p for p in map(self.places.__getitem__, rows) if p >= count), reverse=True)
        if not outside:
            return
        inside = {*rows}
        wrong = [p for p in range(count) if self.rows[p] not in inside]
        # Once the free ones are taken, every free place lies behind, and there is always one.
        for place in sorted(wrong, key=lambda p: self.rows[p] is not None):
            if self.rows[place] is not None:
                self.move(place, self.free(count))
            self.move(outside.pop(), place)

    # -- what others may go on from ------------------------------------------------------------------------------

    def part(self, row: Row, start: int, stop: int) -> Part:
        """A copy of the keys and values of some tokens, of slots that keep all."""
        place = self.places[row]
        return Part([self.taken(h, place, start, stop) for h in self.held if isinstance(h, Appended)], stop - start)

    def state(self, row: Row) -> Part:
        """A copy of what slots hold that do not keep all tokens."""
        place, memory = self.places[row], self.memory
        buffers: list[Buffer] = []
        for held in self.held:
            if isinstance(held, Windowed):
                used = int(self.used[held.slot.window][place])
                buffers.append(self.taken(held, place, used - min(used, held.kept), used))
            elif isinstance(held, Replaced):
                now = memory.row(held.both[int(self.turns[place])], place)
                memory.copy(now, kept := memory.allocate(now.shape, held.dtype))
                buffers.append(kept)
        return Part(buffers, int(self.lengths[place]))

    def taken(self, held: Held, place: int, start: int, stop: int) -> Buffer:
        row, axis = self.memory.row(held.buffer, place), held.slot.axis
        shape = tuple(stop - start if i == axis else n for i, n in enumerate(row.shape))
        target = self.memory.allocate(shape, held.dtype)
        self.memory.shift(row, start, target, 0, stop - start, row=0, axis=axis or 0)
        return target

    def resume(self, row: Row, parts: Sequence[Part], state: Part | None, length: int) -> None:
        """Lay what was kept of `length` tokens into a row that has read nothing."""
        check_room(length, self.contract)
        if length > self.size:
            self.reserve(length)
        place, memory = self.places[row], self.memory
        for i, held in enumerate(h for h in self.held if isinstance(h, Appended)):
            axis, target, start = held.slot.axis or 0, memory.row(held.buffer, place), 0
            for part in parts:
                memory.shift(part.buffers[i], 0, target, start, part.length, row=0, axis=axis)
                start += part.length
        others = [h for h in self.held if not isinstance(h, Appended)]
        for held, buffer in zip(others, state.buffers if state is not None else (), strict=True):
            if isinstance(held, Replaced):
                memory.copy(buffer, memory.row(held.both[int(self.turns[place])], place))
            else:
                axis, target = held.slot.axis or 0, memory.row(held.buffer, place)
                memory.shift(buffer, 0, target, 0, buffer.shape[axis], row=0, axis=axis)
        for window, used in self.used.items():
            used[place] = min(length, window - 1) if window else length
        self.lengths[place] = length

    # -- reading ---------------------------------------------------------------------------------------------------

    def step(self, rows: Sequence[Row], along: Mapping[str, Array], want: Want = EVERYTHING) -> Array:
        """One token for each row, [n,1,...] by name; what is wanted of it in the order of the rows."""
        self.arrange(rows)
        count = len(rows)
        places = np.fromiter(map(self.places.__getitem__, rows), np.int64, count)
        ordered = bool((places[1:] > places[:-1]).all())
        if not ordered:
            order = np.argsort(places)
            along = {k: v[order] for k, v in along.items()}
        now = self.lengths[:count]
        most = int(now.max()) + 1
        check_room(most, self.contract)
        if most > self.size:
            self.reserve(most)
        if self.windowed:
            self.make_room(range(count), 1)
        turn = self.together(count)
        call = self.steps.get((count, turn))
        if call is None:
            call = self.steps[count, turn] = StepCall(self, count, turn)
        found = call.run(along, now, self.used, most, want, self.told)
        self.told = call.results
        now += 1
        for used in self.used.values():
            used[:count] += 1
        if self.replaced:
            self.turns[:count] = 1 - turn
        return found if ordered else found[places]

    def together(self, count: int) -> int:
        """The turn of the states of the first rows; those that are in the other buffer are copied."""
        if not self.replaced:
            return 0
        turns = self.turns[:count]
        turn = int(2 * int(turns.sum()) > count)
        for place in np.flatnonzero(turns != turn).tolist():
            for held in self.replaced:
                row = self.memory.row
                self.memory.copy(row(held.both[1 - turn], place), row(held.both[turn], place))
        self.turns[:count] = turn
        return turn

    def read(self, row: Row, along: Mapping[str, Array], count: int, *, every: bool) -> Array:
        """Several tokens of one row, [1,S,...] by name; outputs [1,V], or [S,V] after each."""
        place = self.places[row]
        after = int(self.lengths[place]) + count
        check_room(after, self.contract)
        if after > self.size:
            self.reserve(after)
        turn = int(self.turns[place])
        call = ReadCall(self, place, count, turn, every=every)
        logits = call.run(along, self.lengths[place : place + 1], count)
        for window, used in self.used.items():
            used[place] = call.used(window) + count
        call.keep()
        self.lengths[place] = after
        self.turns[place] = 1 - turn
        return logits

    # -- room ------------------------------------------------------------------------------------------------------

    def reserve(self, needed: int) -> None:
        """Make places for rows of `needed` tokens in what grows with all of them."""
        size = self.size
        while size < needed:
            size = min(self.contract.limit, max(1, 2 * size))
        taken = np.where([r is not None for r in self.rows], self.lengths, 0)
        self.steps = {}  # First: should there be no memory for some buffer, nothing may step over old ones.
        for held in self.held:
            if isinstance(held, Appended):
                held.grow(size, taken)
        self.size = size

    def make_room(self, places: Sequence[int], count: int) -> None:
        """Move down rows of windows that have no places for `count` more tokens."""
        for window, used in self.used.items():
            held = [h for h in self.windowed if h.slot.window == window]
            if not held:
                continue
            room = held[0].buffer.shape[held[0].slot.axis or 0]
            for place in places:
                if used[place] + count > room:
                    for h in held:
                        h.drop(place, int(used[place]))
                    used[place] = min(int(used[place]), window - 1)

    def truncate(self, row: Row, length: int) -> None:
        place = self.places[row]
        now, lengths = self.lengths[place : place + 1], np.array([length])
        used = {n: u[place : place + 1] for n, u in self.used.items()}
        check_cut((h.slot, refusal(h.slot, lengths, now, used[h.slot.window])) for h in self.held)
        for u in used.values():
            u -= now - lengths
        now[:] = length


def signature(fixed: Mapping[str, Array]) -> tuple[Any, ...]:
    """What rows must have in common to lie in one pool."""
    return tuple(sorted((k, v.shape) for k, v in fixed.items()))
