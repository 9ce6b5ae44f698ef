"""State of a generation: shared buffers that a kernel writes in place, or caches that grow by a copy a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from ...ir.errors import RuntimeInputError
from .attention import LENGTHS, TOTAL
from .contract import Contract
from .logits import ROWS
from .options import BINDING_ERRORS, RUNTIME_ERRORS, Loaded, aligned

Array = np.ndarray[Any, Any]
STATE = "past_state."


class Cache(Protocol):
    """What a session needs of its state. lengths: tokens a row has so far, i64 [B]."""

    lengths: Array

    @property
    def capacity(self) -> int: ...

    def start(self, tokens: Array, lengths: Array) -> Array: ...

    def extend(self, tokens: Array) -> Array: ...

    def truncate(self, lengths: Array) -> None: ...


def check_room(needed: int, contract: Contract) -> None:
    """Raises RuntimeInputError if rows of `needed` tokens are longer than the model's positions."""
    if needed > contract.limit:
        what = f"{needed} tokens do not fit: the model was built for at most {contract.positions} positions"
        raise RuntimeInputError(what)


def names_of(loaded: Loaded) -> tuple[str, str, str]:
    """(token ids, attention mask, positions): the names of these inputs in this graph."""
    lead = "decoder_" if "decoder_input_ids" in loaded.inputs else ""
    return f"{lead}input_ids", f"{lead}attention_mask", f"{lead}position_ids"


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


class GrowingCaches:
    """Caches as the portable graph has them: one column a token, a mask for padding, positions beside them."""

    def __init__(self, loaded: Loaded, contract: Contract, extra: Mapping[str, Array]) -> None:
        self.loaded, self.contract, self.extra = loaded, contract, dict(extra)
        self.lengths: Array = np.zeros(0, np.int64)
        self.pasts: dict[str, Any] = {}
        self.mask = np.zeros((0, 0), np.int64)
        self.places = np.zeros((0, 0), np.int64)
        self.names = names_of(loaded)

    @property
    def capacity(self) -> int:
        return self.contract.limit

    def start(self, tokens: Array, lengths: Array) -> Array:
        batch = len(tokens)
        self.pasts = {
            f"past_key_values.{i}.{name}": np.zeros((batch, heads, 0, width), np.float32)
            for i, (heads, key, value) in enumerate(self.contract.layers)
            for name, width in (("key", key), ("value", value))
        }
        self.pasts = {k: v.astype(self.loaded.dtypes[k]) for k, v in self.pasts.items()}
        self.mask = np.zeros((batch, 0), np.int64)
        self.places = np.zeros((batch, 0), np.int64)
        self.lengths = np.zeros(batch, np.int64)
        return self.call(tokens, lengths)

    def extend(self, tokens: Array) -> Array:
        return self.call(tokens, self.lengths + tokens.shape[1])

    def truncate(self, lengths: Array) -> None:
        self.mask = self.mask * (self.places < lengths[:, None])
        used = int(np.flatnonzero(self.mask.any(axis=0)).max(initial=-1)) + 1
        self.mask, self.places = self.mask[:, :used], self.places[:, :used]
        self.pasts = {k: np.ascontiguousarray(_array(v)[:, :, :used]) for k, v in self.pasts.items()}
        self.lengths = lengths.copy()

    def call(self, tokens: Array, after: Array) -> Array:
        batch, rows = tokens.shape
        check_room(int(after.max()), self.contract)
        new = np.arange(rows)
        places = self.lengths[:, None] + new
        last = after - self.lengths - 1
        mask = np.concatenate([self.mask, (new <= last[:, None]).astype(np.int64)], axis=1)
        ids, mask_name, position_name = self.names
        feeds = {**self.extra, ids: tokens, mask_name: mask, position_name: places, **self.pasts}
        if self.contract.rows:
            feeds[ROWS] = np.arange(batch) * rows + last
        names = list(self.loaded.outputs)
        try:
            results = self.loaded.session.run_with_ort_values(names, _values(feeds, self.loaded))
        except BINDING_ERRORS as e:
            raise RuntimeInputError(f"ONNX Runtime: {e}", place=self.loaded.file) from e
        found = dict(zip(names, results, strict=True))
        self.pasts = {
            k.replace("present.", "past_key_values."): v for k, v in found.items() if k.startswith("present.")
        }
        self.mask, self.places = mask, np.concatenate([self.places, places], axis=1)
        self.lengths = after.astype(np.int64)
        logits = found["logits"].numpy()
        return (logits if self.contract.rows else logits[np.arange(batch), last]).astype(np.float32)


class RecurrentStates:
    """Last states of recurrent layers: past_state.N.h and .c [B,H]. What was read cannot be taken back."""

    def __init__(self, loaded: Loaded, contract: Contract, extra: Mapping[str, Array]) -> None:
        self.loaded, self.contract, self.extra = loaded, contract, dict(extra)
        self.lengths: Array = np.zeros(0, np.int64)
        self.states: dict[str, Array] = {}
        self.names = names_of(loaded)

    @property
    def capacity(self) -> int:
        return self.contract.limit

    def start(self, tokens: Array, lengths: Array) -> Array:
        self.states = first_states(self.loaded, self.extra, len(tokens))
        self.lengths = np.zeros(len(tokens), np.int64)
        return self.call(tokens, lengths)

    def extend(self, tokens: Array) -> Array:
        return self.call(tokens, self.lengths + tokens.shape[1])

    def truncate(self, lengths: Array) -> None:
        if not np.array_equal(lengths, self.lengths):
            what = f"{self.contract.family} keeps one state and no past: {self.lengths.tolist()} tokens stay read"
            raise RuntimeInputError(what)

    def call(self, tokens: Array, after: Array) -> Array:
        batch, rows = tokens.shape
        check_room(int(after.max()), self.contract)
        last = after - self.lengths - 1
        ids, mask, positions = self.names
        feeds = {**self.extra, **self.states, ids: tokens, mask: (np.arange(rows) <= last[:, None]).astype(np.int64)}
        feeds |= {positions: self.lengths[:, None] + np.arange(rows), ROWS: np.arange(batch) * rows + last}
        found = execute(self.loaded, feeds)
        self.states = {k.replace("present_", "past_"): v for k, v in found.items() if k.startswith("present_state.")}
        self.lengths = after.astype(np.int64)
        logits = found["logits"]
        return (logits if self.contract.rows else logits[np.arange(batch), last]).astype(np.float32)


def first_states(loaded: Loaded, extra: Mapping[str, Array], batch: int) -> dict[str, Array]:
    """past_state.* before the first token: what an encoder left behind, else zeros."""
    found: dict[str, Array] = {}
    for name, shape in loaded.inputs.items():
        if name.startswith(STATE):
            zeros = np.zeros((batch, shape[1]), loaded.dtypes[name])
            found[name] = extra.get(name.replace(STATE, "initial_state."), zeros)
    return found


def execute(loaded: Loaded, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a session on the feeds it has inputs for; outputs by name. Raises RuntimeInputError."""
    names = list(loaded.outputs)
    known = {k: v for k, v in feeds.items() if k in loaded.inputs}
    try:
        return dict(zip(names, loaded.session.run(names, known), strict=True))
    except RUNTIME_ERRORS as e:
        raise RuntimeInputError(f"ONNX Runtime: {e}", place=loaded.file) from e


def _values(feeds: Mapping[str, Any], loaded: Loaded) -> dict[str, ort.OrtValue]:
    return {
        k: v if isinstance(v, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(v))
        for k, v in feeds.items()
        if k in loaded.inputs
    }


def _array(v: Any) -> Array:
    return v.numpy() if isinstance(v, ort.OrtValue) else v
