"""Calls over a pool of rows: one token for each of the first rows, or several for one row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .feeds import counts_of
from .held import Held, Replaced, Windowed, places_along
from .logits import ROWS
from .memory import Array, Buffer
from .results import Results, Want
from .runtime import UNCAPTURED
from .state import stream_of

if TYPE_CHECKING:
    from .pool import Pool


class StepCall:
    """One token for each of the first rows: a binding over the first part of every buffer, made once."""

    def __init__(self, pool: Pool, count: int, turn: int) -> None:
        memory, loaded = pool.memory, pool.loaded
        self.memory, self.count = memory, count
        stream, windows = stream_of(pool.contract), (0, *pool.contract.windows)
        output, graph = pool.contract.output, pool.captures.new()
        known = {*pool.fixed, *(h.slot.input for h in pool.held)}
        shapes = {k: _shape(s, count, 1) for k, s in loaded.inputs.items() if k not in known}
        hosted = {counts_of(n)[1] for n in windows}
        self.feeds = {k: memory.allocate(s, loaded.dtypes[k], host=k in hosted) for k, s in shapes.items()}
        self.ids, self.positions = stream.ids, self.feeds.get(stream.positions)
        pairs = [(n, *map(self.feeds.get, counts_of(n))) for n in windows]
        if graph != UNCAPTURED:  # A captured step sees nothing that is written on the host later.
            for window, _, most in pairs:
                if most is not None:
                    memory.write(most, np.asarray(places_along(pool.held, window, pool.contract.limit)))
            pairs = [(n, by_row, None) for n, by_row, _ in pairs]
        self.counts = [(n, by_row, most) for n, by_row, most in pairs if by_row is not None or most is not None]
        self.results = Results(memory, loaded, output, memory.row(pool.logits, 0, count), (count, 1))
        if ROWS in self.feeds:
            memory.write(self.feeds[ROWS], np.arange(count))
        inputs = {h.slot.input: memory.row(_past(h, turn), 0, count) for h in pool.held}
        inputs |= {k: memory.row(b, 0, count) for k, b in pool.fixed.items()}
        outputs = {h.slot.output: memory.row(_present(h, turn), 0, count) for h in pool.held}
        given = {k: b for k, b in inputs.items() if k in loaded.inputs}
        written = {**outputs, **self.results.bound}
        found = self.results
        self.call = pool.captures.bind(memory, loaded, given | self.feeds, written, graph, found.logits, found.tokens)

    @staticmethod
    def output(pool: Pool) -> Buffer:
        """Where all steps of a pool write their output."""
        loaded, output = pool.loaded, pool.contract.output
        vocab: Any = loaded.outputs[output][-1]
        shape = (pool.most, vocab) if ROWS in loaded.inputs else (pool.most, 1, vocab)
        return pool.memory.allocate(shape, loaded.dtypes[output])

    def run(
        self,
        along: Mapping[str, Array],
        before: Array,
        used: Mapping[int, Array],
        most: int,
        want: Want,
        told: Results | None,
    ) -> Array:
        """What is wanted after the new token of each row, in memory that the next run may write over. told: the results
        that the tokens were chosen from, if there are."""
        write, feeds, count = self.memory.write, self.feeds, self.count
        for name, array in along.items():
            if name == self.ids and told is not None:
                told.feed(feeds[name], array)
            elif name in feeds:
                write(feeds[name], array)
        if self.positions is not None:
            write(self.positions, before[:, None])
        for window, by_row, longest in self.counts:
            after = used[window][:count] + 1
            if by_row is not None:
                write(by_row, after)
            if longest is not None:
                write(longest, np.asarray(most if window == 0 else int(after.max())))
        self.results.chosen = None
        self.call.run()
        return self.results.take(want)


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
