"""State of the graph that takes masks: every call gives longer caches, rows are padded on the left and end together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...ir.errors import RuntimeInputError
from ...ir.slots import Growth, Slot
from .contract import Contract
from .held import refusal, shape_of
from .logits import ROWS
from .memory import Array, Buffer, Memory
from .next_token import NEXT
from .reorder import filled
from .results import EVERYTHING, TOKEN, Want
from .runtime import Loaded
from .state import NOTHING, Along, check_cut, check_room, stream_of, told

Pasts = dict[str, Buffer]


class Padded:
    """Slots as the graph gives them: one column a token, so that the columns of row b are the last lengths[b] ones.

    Where the model does not stand padding (`Contract.alone`, or no input for a mask), and for chunks of different
    lengths, each row is taken out of the batch without its padding, run, and put back.
    """

    def __init__(self, loaded: Loaded, contract: Contract, memory: Memory) -> None:
        self.loaded, self.contract, self.memory = loaded, contract, memory
        self.lengths: Array = NOTHING
        self.pasts: Pasts = {}
        self.fixed: dict[str, Buffer] = {}
        self.origins: Array = NOTHING
        self.slots = [s for s in contract.slots if s.growth is not Growth.once]
        self.together = not contract.alone and stream_of(contract).mask in loaded.inputs

    @property
    def capacity(self) -> int:
        return self.contract.limit

    @property
    def bytes(self) -> int:
        kept = {s.input for s in self.contract.slots}
        buffers = [*self.pasts.values(), *(b for k, b in self.fixed.items() if k in kept)]
        return sum(int(np.prod(b.shape)) * b.dtype.itemsize for b in buffers)

    def twin(self) -> Padded:
        """Another state that has read the same; calls give new buffers, so that both may go on from these."""
        twin = Padded(self.loaded, self.contract, self.memory)
        twin.lengths, twin.pasts, twin.fixed = self.lengths, dict(self.pasts), self.fixed
        return twin

    def taken(self, row: int) -> Padded:
        """A state of one row only, without its padding."""
        one, length = self.twin(), int(self.lengths[row])
        one.lengths = self.lengths[row : row + 1].copy()
        one.pasts = {s.input: self.row(s, self.pasts[s.input], row, length) for s in self.slots}
        one.fixed = {k: self.memory.row(b, row) for k, b in self.fixed.items()}
        return one

    @staticmethod
    def together_of(rows: Sequence[Padded]) -> Padded:
        """A state of rows side by side, each of which was alone."""
        first = rows[0]
        joined = first.twin()
        joined.lengths = np.concatenate([r.lengths for r in rows])
        joined.pasts = {s.input: first.joined(s, [r.pasts[s.input] for r in rows]) for s in first.slots}
        joined.fixed = {}
        for name, buffer in first.fixed.items():
            target = first.memory.allocate((len(rows), *buffer.shape[1:]), buffer.dtype)
            for i, r in enumerate(rows):
                first.memory.copy(r.fixed[name], first.memory.row(target, i))
            joined.fixed[name] = target
        return joined

    def resume(self, pasts: Sequence[Buffer], length: int, fixed: Mapping[str, Array]) -> None:
        """Go on from what one row held of `length` tokens, one buffer a slot; they are read and not written to."""
        self.fixed = {k: self.memory.upload(v) for k, v in fixed.items() if k in self.loaded.inputs}
        self.pasts = {s.input: b for s, b in zip(self.slots, pasts, strict=True)}
        self.lengths = np.array([length])

    # -- reading -----------------------------------------------------------------------------------------------

    def start(self, along: Along, lengths: Array, fixed: Mapping[str, Array], *, every: bool = False) -> Array:
        batch = len(lengths)
        self.lengths, self.pasts, self.origins = NOTHING, {}, np.arange(batch)
        self.fixed = {k: self.memory.upload(v) for k, v in fixed.items() if k in self.loaded.inputs}
        pasts: Pasts = {}
        for slot in self.slots:
            first = fixed.get(slot.first) if slot.first else None
            zeros = self.memory.allocate(shape_of(slot, batch), self.loaded.dtypes[slot.input])
            pasts[slot.input] = zeros if first is None else self.memory.upload(first)
        return self.read(along, np.zeros(batch, np.int64), lengths, pasts, kept=False, every=every)

    def extend(self, along: Along, counts: Array, *, every: bool = False, want: Want = EVERYTHING) -> Array:
        return self.read(along, self.lengths, counts, self.pasts, kept=True, every=every, want=want)

    def read(
        self,
        along: Along,
        before: Array,
        counts: Array,
        pasts: Pasts,
        *,
        kept: bool,
        every: bool = False,
        want: Want = EVERYTHING,
    ) -> Array:
        """Add counts[b] tokens to each row of a state, which becomes that of this object when all is done."""
        check_room(int((before + counts).max()), self.contract)
        even = self.together or len(set(before.tolist())) == 1
        ragged = len(set(counts.tolist())) > 1
        first = not before.any()
        run = self.call if even and (not ragged or (first and self.together)) else self.one_by_one
        try:
            logits, pasts = run(along, before, counts, pasts, self.fixed, every=every, want=want)
        except RuntimeInputError as e:
            raise told(e, kept=kept) from e
        self.pasts, self.lengths = pasts, before + counts
        return logits

    def one_by_one(
        self,
        along: Along,
        before: Array,
        counts: Array,
        pasts: Pasts,
        fixed: Mapping[str, Buffer],
        *,
        every: bool,
        want: Want,
    ) -> tuple[Array, Pasts]:
        """Every row alone."""
        found: list[tuple[Array, Pasts]] = []
        for row, count in enumerate(counts.tolist()):
            one = slice(row, row + 1)
            own = {s.input: self.row(s, pasts[s.input], row, int(before[row])) for s in self.slots}
            part = {k: v[one, :count] for k, v in along.items()}
            still = {k: self.memory.row(b, row) for k, b in fixed.items()}
            found.append(self.call(part, before[one], counts[one], own, still, every=every, want=want))
        joined = {s.input: self.joined(s, [p[s.input] for _, p in found]) for s in self.slots}
        most = int(counts.max())
        return np.concatenate([filled(logits, most) if every else logits for logits, _ in found]), joined

    def call(
        self,
        along: Along,
        before: Array,
        counts: Array,
        pasts: Pasts,
        fixed: Mapping[str, Buffer],
        *,
        every: bool,
        want: Want,
    ) -> tuple[Array, Pasts]:
        """All rows in one call: all get as many tokens, or they get their first ones."""
        batch, rows = len(counts), int(counts.max())
        stream, after = stream_of(self.contract), before + counts
        total = int(after.max())
        new = {k: _ended(v, counts, rows) for k, v in along.items()}
        columns = np.arange(total)
        pad = (total - after)[:, None]
        feeds = new | {
            stream.mask: (columns >= pad).astype(np.int64),
            stream.positions: np.maximum(columns[total - rows :] - pad, 0),
            ROWS: np.arange(batch * rows) if every else np.arange(batch) * rows + rows - 1,
        }
        given = {k: self.memory.upload(v) for k, v in feeds.items() if k in self.loaded.inputs}
        found = self.memory.run(self.loaded, given | pasts | dict(fixed))
        pasts = {s.input: self.newest(s, found[s.output]) for s in self.slots}
        if want is TOKEN and NEXT in found and not every:
            tokens = self.memory.download(found[NEXT])
            return tokens if self.contract.rows else tokens[:, -1], pasts
        logits = self.memory.download(found[self.contract.output])
        if every:
            logits = logits.reshape(batch, rows, -1)
        elif not self.contract.rows:
            logits = logits[:, -1]
        return want.of(logits.astype(np.float32)), pasts

    # -- columns -----------------------------------------------------------------------------------------------

    def newest(self, slot: Slot, present: Buffer) -> Buffer:
        """What of a present is worth keeping: of a window the tokens that count for the next one."""
        kept = slot.window - 1
        if slot.growth is not Growth.window or present.shape[slot.axis or 0] <= kept:
            return present
        total, rows = present.shape[slot.axis or 0], present.shape[0]
        return self.moved(slot, present, [total - kept] * rows, [kept] * rows)

    def moved(self, slot: Slot, source: Buffer, starts: list[int], counts: list[int]) -> Buffer:
        """A buffer whose rows end with counts[b] columns of a row, from starts[b] on."""
        assert slot.axis is not None
        places = max(counts)
        target = self.memory.allocate(shape_of(slot, len(counts), places), source.dtype)
        for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
            self.memory.shift(source, start, target, places - count, count, row=row, axis=slot.axis)
        return target

    def row(self, slot: Slot, past: Buffer, row: int, length: int) -> Buffer:
        """The columns of one row without its padding."""
        one = self.memory.row(past, row)
        if slot.axis is None:
            return one
        columns = past.shape[slot.axis]
        count = min(length, columns)
        return self.moved(slot, one, [columns - count], [count])

    def joined(self, slot: Slot, rows: list[Buffer]) -> Buffer:
        """Rows side by side, padded on the left."""
        places = 0 if slot.axis is None else max(b.shape[slot.axis] for b in rows)
        target = self.memory.allocate(shape_of(slot, len(rows), places), rows[0].dtype)
        for row, one in enumerate(rows):
            if slot.axis is None:
                self.memory.copy(one, self.memory.row(target, row))
            else:
                count = one.shape[slot.axis]
                into = self.memory.row(target, row)
                self.memory.shift(one, 0, into, places - count, count, row=0, axis=slot.axis)
        return target

    # -- forgetting --------------------------------------------------------------------------------------------

    def truncate(self, lengths: Array) -> None:
        now, pasts = self.lengths, dict(self.pasts)
        check_cut((s, refusal(s, lengths, now, self.held(s))) for s in self.slots)
        for slot in self.slots:
            if slot.axis is not None and not np.array_equal(lengths, now):
                past, held = pasts[slot.input], self.held(slot)
                starts, counts = past.shape[slot.axis] - held, held - (now - lengths)
                pasts[slot.input] = self.moved(slot, past, starts.tolist(), counts.tolist())
        self.pasts, self.lengths = pasts, lengths.copy()

    def reorder(self, parents: Array, common: Array) -> None:
        if not np.array_equal(parents, np.arange(len(self.lengths))):
            row, now = self.row, self.lengths
            for slot in self.slots:
                past = self.pasts[slot.input]
                self.pasts[slot.input] = self.joined(slot, [row(slot, past, p, int(now[p])) for p in parents.tolist()])
            origins = self.origins[parents]
            if not np.array_equal(origins, self.origins):
                self.fixed = {k: self.chosen(b, parents) for k, b in self.fixed.items()}
            self.lengths, self.origins = self.lengths[parents], origins

    def chosen(self, source: Buffer, rows: Array) -> Buffer:
        """A buffer of chosen rows of another one."""
        target = self.memory.allocate((len(rows), *source.shape[1:]), source.dtype)
        for to, row in enumerate(rows.tolist()):
            self.memory.copy(self.memory.row(source, row), self.memory.row(target, to))
        return target

    def held(self, slot: Slot) -> Array:
        """How many columns of a slot are those of each row, i64 [B]."""
        columns = 0 if slot.axis is None else self.pasts[slot.input].shape[slot.axis]
        return np.minimum(self.lengths, columns)


def _ended(x: Array, counts: Array, rows: int) -> Array:
    """x [B,S,...] with its first counts[b] entries at the end of `rows` columns, zeros before them."""
    if (counts == rows).all():
        return x[:, :rows]
    moved = np.zeros((x.shape[0], rows, *x.shape[2:]), x.dtype)
    for target, row, count in zip(moved, x, counts.tolist(), strict=True):
        target[rows - count :] = row[:count]
    return moved
