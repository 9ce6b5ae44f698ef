"""Caches in buffers of a fixed capacity that the attention kernel writes in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from ...ir.errors import RuntimeInputError
from .attention import LENGTHS, TOTAL
from .cache import Array, check_room, names_of
from .contract import Contract
from .logits import ROWS
from .options import BINDING_ERRORS, Loaded, aligned


class SharedBuffers:
    """Keys and values of every layer in buffers [B,K,capacity,D], bound once as past and as present.

    Rows are compact: row b has its tokens in the first lengths[b] places, whatever the others have. What lies
    behind them is never read. `extra`: inputs that stay the same while the batch does (an encoder's results).
    """

    def __init__(self, loaded: Loaded, contract: Contract, capacity: int, extra: Mapping[str, Array]) -> None:
        self.loaded, self.contract, self.extra = loaded, contract, dict(extra)
        self.size = min(capacity, contract.limit)
        self.lengths: Array = np.zeros(0, np.int64)
        self.buffers: dict[str, Array] = {}
        self.values: dict[str, ort.OrtValue] = {}
        self.ids, _, self.positions = names_of(loaded)
        self._step: _Call | None = None

    @property
    def capacity(self) -> int:
        return self.size

    def start(self, tokens: Array, lengths: Array) -> Array:
        batch, rows = tokens.shape
        if not self.values or len(next(iter(self.buffers.values()))) != batch:
            self.buffers, self.lengths = {}, np.zeros(batch, np.int64)
        self.lengths = np.zeros(batch, np.int64)
        self.reserve(rows, keep=False)
        logits = self.call(tokens, lengths, np.zeros(batch, np.int64))
        self.lengths = lengths.copy()
        return logits

    def extend(self, tokens: Array) -> Array:
        batch, rows = tokens.shape
        check_room(int(self.lengths.max()) + rows, self.contract)
        if rows > 1 and batch > 1:  # The kernel takes several new tokens behind a past for one row only.
            for i in range(rows):
                logits = self.extend(tokens[:, i : i + 1])
            return logits
        after = self.lengths + rows
        self.reserve(int(after.max()), keep=True)
        logits = self.step(tokens, after) if rows == 1 else self.call(tokens, after, self.lengths)
        self.lengths = after
        return logits

    def truncate(self, lengths: Array) -> None:
        self.lengths = lengths.copy()

    def reserve(self, needed: int, *, keep: bool) -> None:
        """Make room for rows of `needed` tokens, doubling. Raises RuntimeInputError past the model's positions."""
        limit = self.contract.limit
        check_room(needed, self.contract)
        if needed <= self.size and self.buffers:
            return
        while self.size < needed:
            self.size = min(limit, max(1, 2 * self.size))
        old, batch = self.buffers, len(self.lengths)
        self.buffers, self.values, self._step = {}, {}, None
        for i, (heads, key, value) in enumerate(self.contract.layers):
            for name, width in (("key", key), ("value", value)):
                label = f"past_key_values.{i}.{name}"
                new = aligned((batch, heads, self.size, width), self.loaded.dtypes[label])
                if keep and label in old:
                    used = int(self.lengths.max(initial=0))
                    new[:, :, :used] = old.pop(label)[:, :, :used]
                self.buffers[label] = new
                self.values[label] = ort.OrtValue.ortvalue_from_numpy(new)

    def step(self, tokens: Array, after: Array) -> Array:
        """One token a row, through a binding that is made once for as long as the buffers stay."""
        if self._step is None:
            self._step = _Call(self, len(tokens), 1)
        return self._step.run(tokens, after, self.lengths).copy()

    def call(self, tokens: Array, after: Array, before: Array) -> Array:
        return _Call(self, *tokens.shape).run(tokens, after, before)


class _Call:
    """A binding for [B,S] tokens: arrays that ONNX Runtime reads and writes where they lie."""

    def __init__(self, owner: SharedBuffers, batch: int, rows: int) -> None:
        loaded = owner.loaded
        self.loaded, self.rows = loaded, rows
        self.binding = loaded.session.io_binding()
        self.feeds: dict[str, Array] = {
            owner.ids: np.zeros((batch, rows), np.int64),
            owner.positions: np.zeros((batch, rows), np.int64),
            LENGTHS: np.zeros(batch, np.int32),
            TOTAL: np.zeros((), np.int32),
            ROWS: np.zeros(batch, np.int64),
        }
        self.names = (owner.ids, owner.positions)
        vocab = loaded.outputs["logits"][-1]
        chosen = ROWS in loaded.inputs
        self.logits = aligned((batch, vocab) if chosen else (batch, rows, vocab), loaded.dtypes["logits"])
        self.chosen = chosen
        self._keep: list[ort.OrtValue] = []
        for name, array in {**owner.extra, **self.feeds}.items():
            if name in loaded.inputs:
                self.bind(self.binding.bind_ortvalue_input, name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, value in owner.values.items():
            self.bind(self.binding.bind_ortvalue_input, name, value)
            self.bind(self.binding.bind_ortvalue_output, name.replace("past_key_values.", "present."), value)
        self.bind(self.binding.bind_ortvalue_output, "logits", ort.OrtValue.ortvalue_from_numpy(self.logits))

    def bind(self, how: Any, name: str, value: ort.OrtValue) -> None:
        how(name, value)
        self._keep.append(value)

    def run(self, tokens: Array, after: Array, before: Array) -> Array:
        """Logits [B,V] (float32) after the last valid token of each row, in memory that the next run writes over."""
        batch = len(tokens)
        ids, positions = (self.feeds[name] for name in self.names)
        ids[...] = tokens
        positions[...] = before[:, None] + np.arange(self.rows)
        self.feeds[LENGTHS][...] = after
        # The kernel wants room for every column of a prompt, even if no row fills it.
        self.feeds[TOTAL][...] = max(int(after.max()), self.rows)
        last = after - before - 1
        self.feeds[ROWS][...] = np.arange(batch) * self.rows + last
        try:
            self.loaded.session.run_with_iobinding(self.binding)
        except BINDING_ERRORS as e:
            raise RuntimeInputError(f"ONNX Runtime: {e}", place=self.loaded.file) from e
        logits = self.logits if self.chosen else self.logits[np.arange(batch), last]
        return logits.astype(np.float32, copy=False)
