"""State of the graph that takes lengths: buffers that kernels write in place, rows side by side without padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...ir.errors import RuntimeInputError
from ...ir.slots import Growth
from .capture import NEVER, Captures
from .contract import Contract
from .feeds import counts_of, folded_inputs
from .held import KINDS, Appended, Held, Replaced, Windowed, places_along, places_of, refusal
from .logits import ROWS
from .memory import Array, Buffer, Memory
from .reorder import Answers, copies, filled, sources_of
from .results import EVERYTHING, Results, Want
from .runtime import UNCAPTURED, Loaded
from .state import NOTHING, Along, check_cut, check_room, stream_of, told

DRAFT = 16
"""Tokens at once for which a binding is worth keeping."""


class Compact:
    """Slots in buffers, each in the way that its growth wants, bound once for all steps of a batch.

    Row b of a buffer has its tokens in the first places, whatever the others have; what lies behind them is never
    read. `used` says how many, by window (0: all tokens).
    """

    def __init__(
        self, loaded: Loaded, contract: Contract, memory: Memory, capacity: int, captures: Captures = NEVER
    ) -> None:
        self.loaded, self.contract, self.memory, self.captures = loaded, contract, memory, captures
        self.size = self.least = min(capacity, contract.limit)
        self.lengths: Array = NOTHING
        self.batch = 0
        self.used: dict[int, Array] = {}
        self.held: list[Held] = []
        self.fixed: dict[str, Buffer] = {}
        self.folded = folded_inputs(contract)
        self.origins: Array = NOTHING
        self.steps: dict[tuple[Any, ...], TokenCall] = {}
        self.told: Results | None = None

    @property
    def capacity(self) -> int:
        return self.size if any(s.growth is Growth.append for s in self.contract.slots) else self.contract.limit

    @property
    def bytes(self) -> int:
        fixed = [b for k, b in self.fixed.items() if any(s.input == k for s in self.contract.slots)]
        return sum(h.bytes for h in self.held) + sum(int(np.prod(b.shape)) * b.dtype.itemsize for b in fixed)

    # -- reading -----------------------------------------------------------------------------------------------

    def start(self, along: Along, lengths: Array, fixed: Mapping[str, Array]) -> Array:
        batch, rows = along[stream_of(self.contract).ids].shape
        self.lengths = NOTHING
        nothing = np.zeros(batch, np.int64)
        self.prepare(batch, rows, fixed)
        self.used = dict.fromkeys((0, *self.contract.windows), nothing)
        inputs = {h.slot.input: h.past for h in self.held}
        outputs = {h.slot.output: h.present for h in self.held}
        prompts = dict[Windowed, Buffer]()
        for held in self.held:
            if isinstance(held, Windowed):
                inputs[held.slot.input] = held.allocate(0)
                prompts[held] = outputs[held.slot.output] = held.allocate(rows)
        call = TokenCall(self, batch, rows, inputs | self.fixed, outputs)
        try:
            logits = call.run(along, nothing, lengths, self.used)
        except RuntimeInputError as e:
            raise told(e, kept=False) from e
        for held, present in prompts.items():
            held.take(present, lengths)
        self.used = {n: np.minimum(lengths, n - 1) if n else lengths.copy() for n in self.used}
        self.commit()
        self.lengths = lengths.copy()
        return logits

    def prepare(self, batch: int, rows: int, fixed: Mapping[str, Array]) -> None:
        """Buffers for a new batch: those of the one before, where it had as many rows."""
        if batch != self.batch:  # Rows that were long once do not make other rows large.
            self.size = self.least
        size = self.room(rows)
        grown = size > self.size and any(h.grows for h in self.held)
        self.size = size
        if batch != self.batch or grown or not self.held:
            self.held, self.steps, self.batch = [], {}, batch
            for slot in self.contract.slots:
                if slot.growth is not Growth.once:
                    places = places_of(slot, self.size, self.contract.limit)
                    dtype = self.loaded.dtypes[slot.input]
                    self.held.append(KINDS[slot.growth](slot, self.memory, batch, dtype, places))
        for held in self.held:
            if isinstance(held, Replaced):
                held.begin(fixed.get(held.slot.first) if held.slot.first else None)
        self.stay({k: v for k, v in fixed.items() if k in self.loaded.inputs})
        self.origins = np.arange(batch)

    def stay(self, fixed: Mapping[str, Array]) -> None:
        """Lay down what stays for a batch; what is copied in any case goes where that of the batch before was."""
        shapes = {k: v.shape for k, v in fixed.items()}
        if self.memory.apart and shapes == {k: b.shape for k, b in self.fixed.items()}:
            for name, array in fixed.items():
                self.memory.write(self.fixed[name], array)
            return
        if self.fixed or fixed:
            self.steps = {}
        self.fixed = {k: self.memory.upload(v) for k, v in fixed.items()}

    def room(self, needed: int) -> int:
        """The capacity that rows of `needed` tokens want, doubling up to the model's positions."""
        size = self.size
        while size < needed:
            size = min(self.contract.limit, max(1, 2 * size))
        return size

    def extend(self, along: Along, counts: Array, *, every: bool = False, want: Want = EVERYTHING) -> Array:
        if int(counts.max()) == 1 == int(counts.min()):
            found = self.advance(along, counts, want)
            return found[:, None] if every else found
        check_room(int((self.lengths + counts).max()), self.contract)
        before, self.lengths = self.lengths, NOTHING  # Whoever stops in the middle leaves nothing to go on from.
        lengths, answers = before, Answers(self.batch, int(counts.max()), every=every)
        try:
            for part, now in self.pieces(along, counts):
                answers.take(np.flatnonzero(now), self.read(part, now, lengths, every=every))
                lengths = lengths + now
        except RuntimeInputError as e:
            kept = lengths is before
            self.lengths = before if kept else NOTHING
            raise told(e, kept=kept) from e
        self.lengths = lengths
        return want.of(answers.found)

    def advance(self, along: Along, counts: Array, want: Want = EVERYTHING) -> Array:
        """One more token for every row: `extend` without what longer pieces need, for it is every step of a decode."""
        before = self.lengths
        after = before + counts
        most = int(after.max())
        check_room(most, self.contract)
        self.lengths = NOTHING
        try:
            if most > self.size:
                self.reserve(most, before)
            if self.contract.windows:
                self.make_room(counts)
            found = self.step(along, before, counts, want)
        except RuntimeInputError as e:
            self.lengths = before
            raise told(e, kept=True) from e
        self.used = {n: used + counts for n, used in self.used.items()}
        self.commit()
        self.lengths = after
        return found

    def pieces(self, along: Along, counts: Array) -> Iterator[tuple[dict[str, Array], Array]]:
        """(tokens, how many of each row) in pieces that the buffers of all windows have places for."""
        rows = int(counts.max())
        free = [h.buffer.shape[h.slot.axis or 0] - h.kept for h in self.held if isinstance(h, Windowed)
                if h.buffer.shape[h.slot.axis or 0] < self.contract.limit]  # fmt: skip
        size = min([rows, *free])
        for start in range(0, rows, size):
            now = np.clip(counts - start, 0, size)
            yield {k: v[:, start : start + size] for k, v in along.items()}, now

    def read(self, along: Along, now: Array, lengths: Array, *, every: bool = False) -> Array:
        """Add now[b] tokens to each row; outputs [N,V] of the rows that got any, [N,S,V] of every token."""
        self.reserve(int((lengths + now).max()), lengths)
        self.make_room(now)
        rows = next(iter(along.values())).shape[1]
        if rows == 1 and now.all():
            logits = self.step(along, lengths, now)
            logits = logits[:, None] if every else logits
        elif self.batch == 1:
            logits = self.call(along, lengths, now, every=every)
        else:  # Kernels take several new tokens behind a past for one row only.
            answers = [self.row(along, lengths, now, b, every=every) for b in np.flatnonzero(now).tolist()]
            logits = np.concatenate([filled(a, rows) for a in answers] if every else answers)
            for held in self.held:
                for b in np.flatnonzero(now == 0).tolist():
                    held.skip(b)
        self.used = {n: used + now for n, used in self.used.items()}
        self.commit()
        return logits

    def commit(self) -> None:
        for held in self.held:
            held.commit()

    # -- room --------------------------------------------------------------------------------------------------

    def reserve(self, needed: int, lengths: Array) -> None:
        """Make places for rows of `needed` tokens in what grows with all of them."""
        size = self.room(needed)
        growing = [h for h in self.held if isinstance(h, Appended)]
        if size == self.size or not growing:
            return
        self.steps = {}
        for held in growing:
            held.grow(size, lengths)
        self.size = size

    def make_room(self, now: Array) -> None:
        """Move down the rows of windows that have no places for what comes."""
        for window, used in self.used.items():
            held = [h for h in self.held if isinstance(h, Windowed) and h.slot.window == window]
            if not held:
                continue
            places = held[0].buffer.shape[held[0].slot.axis or 0]
            full = np.flatnonzero(used + now > places).tolist()
            for row in full:
                for h in held:
                    h.drop(row, int(used[row]))
            if full:
                self.used[window] = np.where(used + now > places, np.minimum(used, window - 1), used)

    def truncate(self, lengths: Array) -> None:
        now = self.lengths
        check_cut((h.slot, refusal(h.slot, lengths, now, self.used[h.slot.window])) for h in self.held)
        self.used = {n: used - (now - lengths) for n, used in self.used.items()}
        self.lengths = lengths.copy()

    def reorder(self, parents: Array, common: Array) -> None:
        new, old = self.held, self.held
        moves: list[tuple[int, int]] | None = copies(parents) if len(parents) == self.batch else None
        if moves is None:
            self.batch, self.steps = len(parents), {}
            new = [h.spread(len(parents)) for h in old]
            moves = [(row, int(parent)) for row, parent in enumerate(parents)]
        for before, after in zip(old, new, strict=True):
            used = self.used[before.slot.window]
            starts = self.starts(used, parents, common) if new is old else np.zeros_like(parents)
            for target, source in moves:
                after.copy_row(before, source, target, int(starts[target]), int(used[source]))
        origins = self.origins[parents]
        if not np.array_equal(origins, self.origins):  # What stays for a batch moves with rows of other sources only.
            self.fixed = {k: self.followed(k, b, origins, parents) for k, b in self.fixed.items()}
            self.steps = {}
        self.held, self.origins = new, origins
        self.used = {n: used[parents] for n, used in self.used.items()}
        self.lengths = self.lengths[parents]

    def followed(self, name: str, buffer: Buffer, origins: Array, parents: Array) -> Buffer:
        """What stays for a batch, for other rows than before: of a source once for all rows beside each other."""
        rows = parents
        if name in self.folded:
            have, want = sources_of(self.origins), sources_of(origins)
            if np.array_equal(have, want):
                return buffer
            rows = np.array([have.tolist().index(source) for source in want.tolist()])
        return self.memory.upload(self.memory.download(buffer)[rows])

    def starts(self, used: Array, parents: Array, common: Array) -> Array:
        """The first place of each row at which it can differ from its parent, if they have `common` tokens alike."""
        alike = (used[parents] == used) & (self.lengths[parents] == self.lengths)
        return np.where(alike, np.maximum(common - (self.lengths - used), 0), 0)

    # -- calls -------------------------------------------------------------------------------------------------

    def step(self, along: Along, lengths: Array, now: Array, want: Want = EVERYTHING) -> Array:
        """One token a row, through bindings that are made once for as long as the buffers stay: one for each of the
        ways round that states take turns."""
        key = (1, False, *self.turn)
        if key not in self.steps:
            self.steps[key] = self.bound(self.batch, 1, graph=self.captures.new())
        call = self.steps[key]
        found = call.run(along, lengths, now, self.used, want, self.told)
        self.told = call.results
        return found.copy() if want is EVERYTHING else found

    @property
    def turn(self) -> tuple[int, ...]:
        """The way round that each state is."""
        return tuple(h.turn for h in self.held if isinstance(h, Replaced))

    def call(self, along: Along, lengths: Array, now: Array, *, every: bool = False) -> Array:
        """Several tokens of one row, in memory that the next call may write over; bindings for a few tokens, which
        drafts come in, are kept."""
        rows = next(iter(along.values())).shape[1]
        key = (rows, every, *self.turn)
        call = self.steps.get(key) or self.bound(self.batch, rows, every=every)
        if rows <= DRAFT:
            self.steps[key] = call
        return call.run(along, lengths, now, self.used)

    def bound(self, batch: int, rows: int, *, every: bool = False, graph: int = UNCAPTURED) -> TokenCall:
        inputs = {h.slot.input: h.past for h in self.held} | self.fixed
        outputs = {h.slot.output: h.present for h in self.held}
        return TokenCall(self, batch, rows, inputs, outputs, every=every, graph=graph)

    def row(self, along: Along, lengths: Array, now: Array, row: int, *, every: bool = False) -> Array:
        """The tokens of one row, without its padding, over its own part of every buffer."""
        view, one = self.memory.row, slice(row, row + 1)
        inputs = {h.slot.input: view(h.past, row) for h in self.held}
        # Of what stays for a source there is one row for all rows that follow it, else as many rows as of tokens.
        inputs |= {k: view(b, row * b.shape[0] // self.batch) for k, b in self.fixed.items()}
        outputs = {h.slot.output: view(h.present, row) for h in self.held}
        part = {k: v[one, : now[row]] for k, v in along.items()}
        call = TokenCall(self, 1, int(now[row]), inputs, outputs, every=every)
        return call.run(part, lengths[one], now[one], {n: used[one] for n, used in self.used.items()})


class TokenCall:
    """A binding for [B,S] tokens: what comes with every call is written into buffers of its own.

    every: the output after every token is wanted, not only that after the last. graph: the captured graph that its
    runs are, which sees nothing that is written on the host later.
    """

    def __init__(
        self,
        owner: Compact,
        batch: int,
        rows: int,
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
        *,
        every: bool = False,
        graph: int = UNCAPTURED,
    ) -> None:
        loaded, memory = owner.loaded, owner.memory
        self.memory, self.rows, self.every = memory, rows, every
        stream, windows = stream_of(owner.contract), (0, *owner.contract.windows)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in loaded.inputs.items():
            if name not in inputs:
                shapes[name] = tuple(n if isinstance(n, int) else (batch, rows)[min(i, 1)] for i, n in enumerate(shape))
        if every and ROWS in shapes:
            shapes[ROWS] = (batch * rows,)
        hosted = {counts_of(n)[1] for n in windows}
        self.feeds = {k: memory.allocate(s, loaded.dtypes[k], host=k in hosted) for k, s in shapes.items()}
        self.ids, self.positions = stream.ids, self.feeds.get(stream.positions)
        pairs = [(n, *map(self.feeds.get, counts_of(n))) for n in windows]
        if graph != UNCAPTURED:
            for window, _, most in pairs:
                if most is not None:
                    memory.write(most, np.asarray(places_along(owner.held, window, owner.contract.limit)))
            pairs = [(n, by_row, None) for n, by_row, _ in pairs]
        self.counts = [(n, by_row, most) for n, by_row, most in pairs if by_row is not None or most is not None]
        self.chosen, output = ROWS in self.feeds, owner.contract.output
        vocab: Any = loaded.outputs[output][-1]
        shape = (*shapes[ROWS], vocab) if self.chosen else (batch, rows, vocab)
        logits = memory.allocate(shape, loaded.dtypes[output])
        self.results = Results(memory, loaded, output, logits, (batch, rows))
        self.columns, self.firsts = np.arange(rows), np.arange(batch) * rows
        if self.chosen and (every or rows == 1):
            memory.write(self.feeds[ROWS], np.arange(batch * rows))
        given = {k: b for k, b in inputs.items() if k in loaded.inputs}
        written = {**outputs, **self.results.bound}
        tokens = self.results.tokens
        self.call = owner.captures.bind(memory, loaded, given | self.feeds, written, graph, logits, tokens)

    def run(
        self,
        along: Along,
        before: Array,
        now: Array,
        used: Mapping[int, Array],
        want: Want = EVERYTHING,
        told: Results | None = None,
    ) -> Array:
        """What is wanted after the last new token of each row, or output [B,S,V] (float32) after every one, in memory
        that the next run writes over. told: the results that the tokens were chosen from, if there are."""
        write, feeds = self.memory.write, self.feeds
        for name, array in along.items():
            if name == self.ids and told is not None:
                told.feed(feeds[name], array)
            elif name in feeds:
                write(feeds[name], array)
        if self.positions is not None:
            write(self.positions, before[:, None] + self.columns)
        for window, by_row, most in self.counts:
            after = used[window] + now
            if by_row is not None:
                write(by_row, after)
            if most is not None:  # Kernels want room for every column of a prompt, even if no row fills it.
                write(most, np.asarray(max(int(after.max()), self.rows)))
        if self.chosen and not self.every and self.rows > 1:
            write(feeds[ROWS], self.firsts + now - 1)
        self.results.chosen = None
        self.call.run()
        if self.every:
            found = self.memory.download(self.results.logits)
            return found.reshape(len(now), self.rows, -1).astype(np.float32, copy=False)
        return self.results.take(want, None if self.chosen else now - 1)
