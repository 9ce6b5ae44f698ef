"""Calls over a pool of rows: one token for each of the first rows, or several for one row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .feeds import counts_of
from .held import Held, Replaced, Windowed
from .logits import ROWS
from .memory import Array, Buffer
from .state import stream_of

if TYPE_CHECKING:
    from .pool import Pool


class StepCall:
    """One token for each of the first rows: a binding over the first part of every buffer, made once."""

    def __init__(self, pool: Pool, count: int, turn: int) -> None:
        memory, loaded = pool.memory, pool.loaded
        self.memory, self.count = memory, count
        first = {k: memory.row(b, 0, count) if b.shape else b for k, b in pool.feeds.items()}
        stream = stream_of(pool.contract)
        output = pool.contract.output
        self.feeds = {k: b for k, b in first.items() if k != output}
        self.positions = self.feeds.get(stream.positions)
        pairs = ((n, *map(self.feeds.get, counts_of(n))) for n in (0, *pool.contract.windows))
        self.counts = [(n, by_row, most) for n, by_row, most in pairs if by_row is not None or most is not None]
        self.logits = first[output]
        if ROWS in self.feeds:
            memory.write(self.feeds[ROWS], np.arange(count))
        inputs = {h.slot.input: memory.row(_past(h, turn), 0, count) for h in pool.held}
        inputs |= {k: memory.row(b, 0, count) for k, b in pool.fixed.items()}
        outputs = {h.slot.output: memory.row(_present(h, turn), 0, count) for h in pool.held}
        given = {k: b for k, b in inputs.items() if k in loaded.inputs}
        self.call = memory.bind(loaded, given | self.feeds, {**outputs, output: self.logits})

    @staticmethod
    def buffers(pool: Pool) -> dict[str, Buffer]:
        """What all steps of a pool share: inputs that come with every call, and the output."""
        loaded, known = pool.loaded, {*pool.fixed, *(h.slot.input for h in pool.held)}
        shapes = {k: _shape(s, pool.most, 1) for k, s in loaded.inputs.items() if k not in known}
        output = pool.contract.output
        vocab: Any = loaded.outputs[output][-1]
        shapes[output] = (pool.most, vocab) if ROWS in shapes else (pool.most, 1, vocab)
        return {k: pool.memory.allocate(s, loaded.dtypes[k]) for k, s in shapes.items()}

    def run(self, along: Mapping[str, Array], before: Array, used: Mapping[int, Array], most: int) -> Array:
        """Output [n,V] (float32) after the new token of each row, in memory that the next run writes over."""
        write, feeds, count = self.memory.write, self.feeds, self.count
        for name, array in along.items():
            if name in feeds:
                write(feeds[name], array)
        if self.positions is not None:
            write(self.positions, before[:, None])
        for window, by_row, longest in self.counts:
            after = used[window][:count] + 1
            if by_row is not None:
                write(by_row, after)
            if longest is not None:
                write(longest, np.asarray(most if window == 0 else int(after.max())))
        self.call.run()
        found = self.memory.download(self.logits)
        return found.reshape(count, -1).astype(np.float32, copy=False)


class ReadCall:
    """Several tokens of the row in one place, over its own part of every buffer.

    Where a window has no places for them all, its newest tokens are read from a buffer of their own, which has, and
    are put back by `keep`.
    """

    def __init__(self, pool: Pool, place: int, count: int, turn: int, *, every: bool) -> None:
        memory, loaded, contract = pool.memory, pool.loaded, pool.contract
        self.memory, self.pool, self.place, self.count, self.every = memory, pool, place, count, every
        self.held: dict[int, int] = {n: int(used[place]) for n, used in pool.used.items()}
        self.apart: dict[Windowed, Buffer] = {}
        inputs = {k: memory.row(b, place) for k, b in pool.fixed.items()}
        outputs: dict[str, Buffer] = {}
        for held in pool.held:
            past, present = memory.row(_past(held, turn), place), memory.row(_present(held, turn), place)
            if isinstance(held, Windowed):
                past = present = self.windowed(held, past)
            inputs[held.slot.input], outputs[held.slot.output] = past, present
        inputs = {k: b for k, b in inputs.items() if k in loaded.inputs}
        shapes = {k: _shape(s, 1, count) for k, s in loaded.inputs.items() if k not in inputs}
        self.chosen = ROWS in shapes
        if self.chosen:
            shapes[ROWS] = (count if every else 1,)
        self.feeds = {k: memory.allocate(s, loaded.dtypes[k]) for k, s in shapes.items()}
        vocab: Any = loaded.outputs[contract.output][-1]
        shape = (*shapes[ROWS], vocab) if self.chosen else (1, count, vocab)
        self.logits = memory.allocate(shape, loaded.dtypes[contract.output])
        self.call = memory.bind(loaded, inputs | self.feeds, {**outputs, contract.output: self.logits})

    def windowed(self, held: Windowed, row: Buffer) -> Buffer:
        """Where a window's tokens are read and added: in its own places if there are enough."""
        axis, window, used = held.slot.axis, held.slot.window, int(self.pool.used[held.slot.window][self.place])
        assert axis is not None, "a window has an axis"
        if used + self.count <= row.shape[axis]:
            return row
        kept = min(used, held.kept)
        shape = tuple(kept + self.count if i == axis else n for i, n in enumerate(row.shape))
        apart = self.apart[held] = self.memory.allocate(shape, held.dtype)
        self.memory.shift(row, used - kept, apart, 0, kept, row=0, axis=axis)
        self.held[window] = kept
        return apart

    def used(self, window: int) -> int:
        """Tokens that the buffers of a window held when the call began."""
        return self.held[window]

    def run(self, along: Mapping[str, Array], before: Array, count: int) -> Array:
        """Output [1,V] (float32) after the last token, or [S,V] after each."""
        write, feeds, pool = self.memory.write, self.feeds, self.pool
        for name, array in along.items():
            if name in feeds:
                write(feeds[name], array)
        positions = feeds.get(stream_of(pool.contract).positions)
        if positions is not None:
            write(positions, before[:, None] + np.arange(count))
        for window in (0, *pool.contract.windows):
            for name in counts_of(window):
                if name in feeds:
                    write(feeds[name], np.asarray(self.held[window] + count))
        if self.chosen:
            write(feeds[ROWS], np.arange(count) if self.every else np.asarray(count - 1))
        self.call.run()
        found = self.memory.download(self.logits)
        found = found.reshape(-1, found.shape[-1])
        return (found if self.every else found[-1:]).astype(np.float32, copy=False)

    def keep(self) -> None:
        """Put what counts of the tokens that were read apart into the places of the row."""
        for held, apart in self.apart.items():
            axis, window = held.slot.axis, held.slot.window
            assert axis is not None, "a window has an axis"
            total = self.held[window] + self.count
            kept = min(total, held.kept)
            self.memory.shift(apart, total - kept, self.memory.row(held.buffer, self.place), 0, kept, row=0, axis=axis)
            self.pool.used[window][self.place] = kept


def _past(held: Held, turn: int) -> Buffer:
    return held.both[turn] if isinstance(held, Replaced) else held.buffer


def _present(held: Held, turn: int) -> Buffer:
    return held.both[1 - turn] if isinstance(held, Replaced) else held.buffer


def _shape(shape: list[Any], batch: int, rows: int) -> tuple[int, ...]:
    """The shape of an input that comes with every call, whose first symbol is the batch and whose second the tokens."""
    return tuple(n if isinstance(n, int) else (batch, rows)[min(i, 1)] for i, n in enumerate(shape))
