"""Caches that grow by a copy a step, and recurrent states, which do not grow at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from ...ir.errors import RuntimeInputError
from .cache import Array, check_room, execute, first_states, names_of
from .contract import Contract
from .logits import ROWS
from .options import BINDING_ERRORS, Loaded


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


def _values(feeds: Mapping[str, Any], loaded: Loaded) -> dict[str, ort.OrtValue]:
    return {
        k: v if isinstance(v, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(v))
        for k, v in feeds.items()
        if k in loaded.inputs
    }


def _array(v: Any) -> Array:
    return v.numpy() if isinstance(v, ort.OrtValue) else v
