"""Buffers of slots whose rows are compact, one class for each growth: row b has its tokens in the first places."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from ...ir.slots import Growth, Slot
from .memory import Array, Buffer, Memory

_MOST = np.iinfo(np.int32).max
SLACK, SHARE = 64, 8
"""Places of a window's buffer beyond those that count: at least SLACK, else one for each SHARE of the window. What is
kept is moved down once in so many tokens; a kernel reads all places, so there are not more than that."""


def shape_of(slot: Slot, batch: int, places: int = 0) -> tuple[int, ...]:
    """The shape of a slot for `batch` rows, with `places` along its length."""
    given = {0: batch} | ({slot.axis: places} if slot.axis is not None else {})
    shape = tuple(given.get(i, d) for i, d in enumerate(slot.type.shape))
    assert all(isinstance(d, int) for d in shape), f"{slot} has a length that nothing says"
    return tuple(int(str(d)) for d in shape)


class Held:
    """A slot in memory: what the next call reads as past and writes as present. grows: places follow the tokens."""

    grows = False

    def __init__(self, slot: Slot, memory: Memory, batch: int, dtype: np.dtype[Any], places: int) -> None:
        self.slot, self.memory, self.batch, self.dtype = slot, memory, batch, dtype
        self.buffer = self.allocate(places)

    def allocate(self, places: int) -> Buffer:
        return self.memory.allocate(shape_of(self.slot, self.batch, places), self.dtype)

    @property
    def past(self) -> Buffer:
        return self.buffer

    @property
    def present(self) -> Buffer:
        """Where the present goes; the past itself where a kernel adds to it in place."""
        return self.buffer

    @property
    def bytes(self) -> int:
        return int(np.prod(self.buffer.shape)) * self.dtype.itemsize

    def commit(self) -> None:
        """A call is over: its present is the past of the next one."""

    def skip(self, row: int) -> None:
        """A call did not read anything for a row: its present is its past."""

    def spread(self, batch: int) -> Self:
        """An empty one of as many places for another number of rows."""
        axis = self.slot.axis
        places = 0 if axis is None else self.buffer.shape[axis]
        return type(self)(self.slot, self.memory, batch, self.dtype, places)

    def copy_row(self, source: Held, row: int, to: int, start: int, count: int) -> None:
        """Make row `to` what a row of `source`, perhaps this one, is: of what has a length, places start to count."""
        axis, view = self.slot.axis, self.memory.row
        if axis is None:
            self.memory.copy(view(source.past, row), view(self.past, to))
        else:
            into = view(self.past, to)
            self.memory.shift(view(source.past, row), start, into, start, count - start, row=0, axis=axis)

    def shift(self, start: int, target: Buffer, to: int, length: int, row: int) -> None:
        axis = self.slot.axis
        assert axis is not None
        self.memory.shift(self.buffer, start, target, to, length, row=row, axis=axis)


class Appended(Held):
    """All tokens, in `places` that grow before they are full."""

    grows = True

    def grow(self, places: int, used: Array) -> None:
        new = self.allocate(places)
        for row, length in enumerate(used.tolist()):
            self.shift(0, new, 0, length, row)
        self.buffer = new


class Windowed(Held):
    """The newest tokens, as many as count and some more, in places that are moved down when full."""

    @property
    def kept(self) -> int:
        """How many tokens of the past count."""
        return self.slot.window - 1

    def take(self, present: Buffer, lengths: Array) -> None:
        """Begin with the newest tokens of a prompt's keys or values, [B,...,S,...]."""
        axis = self.slot.axis
        assert axis is not None
        for row, length in enumerate(lengths.tolist()):
            count = min(length, self.kept)
            self.memory.shift(present, length - count, self.buffer, 0, count, row=row, axis=axis)

    def drop(self, row: int, count: int) -> None:
        """Move down the newest of `count` tokens of a row, as many as count."""
        kept = min(count, self.kept)
        self.shift(count - kept, self.buffer, 0, kept, row)


class Replaced(Held):
    """One value, in two buffers that take turns: a call that dies has not touched what it read."""

    def __init__(self, slot: Slot, memory: Memory, batch: int, dtype: np.dtype[Any], places: int) -> None:
        super().__init__(slot, memory, batch, dtype, places)
        self.both = self.buffer, self.allocate(places)
        self.turn = 0

    @property
    def past(self) -> Buffer:
        return self.both[self.turn]

    @property
    def present(self) -> Buffer:
        return self.both[1 - self.turn]

    @property
    def bytes(self) -> int:
        return 2 * super().bytes

    def begin(self, first: Array | None) -> None:
        """Start from what an encoder left behind, else from zeros."""
        self.memory.write(self.past, np.zeros((), self.dtype) if first is None else first)

    def commit(self) -> None:
        self.turn = 1 - self.turn

    def skip(self, row: int) -> None:
        self.memory.copy(self.memory.row(self.past, row), self.memory.row(self.present, row))


def refusal(slot: Slot, lengths: Array, now: Array, used: Array) -> str:
    """Why rows of `now` tokens, the newest `used` of them held, cannot be cut to `lengths`; "" where they can."""
    changed = lengths < now
    if slot.growth is Growth.replace and changed.any():
        row = int(changed.argmax())
        return f"is one state and no past: the {now[row]} tokens of row {row} stay read"
    needed = np.maximum(lengths - slot.window + 1, 0)
    gone = changed & (needed < now - used)
    if slot.growth is Growth.window and gone.any():
        row = int(gone.argmax())
        held = f"holds the newest {used[row]} of the {now[row]} tokens of row {row}"
        return f"{held}; cut to {lengths[row]}, those from number {needed[row]} on would count"
    return ""


KINDS: dict[Growth, type[Held]] = {
    Growth.append: Appended,
    Growth.window: Windowed,
    Growth.replace: Replaced,
}


def places_of(slot: Slot, capacity: int, limit: int) -> int:
    """Places along the length of a new buffer."""
    if slot.growth is Growth.window:
        kept = slot.window - 1
        return max(1, min(kept + max(SLACK, kept // SHARE), limit))
    return capacity


def bytes_of(slot: Slot, limit: int) -> int:
    """Bytes that a slot takes for one row of `limit` tokens; 0 for what depends on the length of a source."""
    if slot.growth is Growth.once:
        return 0
    copies = 2 if slot.growth is Growth.replace else 1
    return copies * math.prod(shape_of(slot, 1, places_of(slot, limit, limit))) * slot.type.dtype.bits // 8


def places_along(held: Iterable[Held], window: int, limit: int) -> int:
    """Places along the buffers of a window (0: of what keeps all tokens), which no step goes beyond."""
    for h in held:
        if h.slot.axis is not None and h.slot.window == window:
            return h.buffer.shape[h.slot.axis]
    return min(limit, _MOST)
