"""What a call leaves behind, and how much of it is brought to the host: all logits, the best few, or a token a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .logits import ROWS
from .memory import Array, Buffer, Memory
from .next_token import NEXT, NONE
from .runtime import Loaded

MOST_BEST, SPARE = 64, 16
"""The largest k of the best logits, and how many more are looked at, for those that equal the last of them."""


@dataclass(frozen=True)
class Want:
    """What of a step is wanted.

    logits: f32 [N,V]. token: i64 [N], the likeliest, the first of equal ones, -1 where the largest logit is not
    finite. best: f32 [N,V], where all but the k largest, and those equal to the least of them, are -inf.
    """

    what: Literal["logits", "token", "best"] = "logits"
    k: int = 0

    def of(self, logits: Array) -> Array:
        """The same from logits [N,V] on the host."""
        if self.what == "logits":
            return logits
        if self.what == "token":
            return likeliest(logits)
        return best(logits, self.k)


EVERYTHING, TOKEN = Want(), Want("token")


def likeliest(logits: Array) -> Array:
    """What `next_token` gives, from logits [...,V] on the host."""
    found = logits.argmax(axis=-1)
    largest = np.take_along_axis(logits, found[..., None], axis=-1)[..., 0]
    return np.where(np.isfinite(largest), found, NONE)


def best(logits: Array, k: int) -> Array:
    """Logits [N,V] without those that are less than the k-th largest of their row."""
    if k >= logits.shape[-1]:
        return logits
    least = np.partition(logits, -k, axis=-1)[..., -k, None]
    return np.where(logits < least, np.float32(-np.inf), logits)


class Results:
    """The buffers of the output and of the next tokens of calls with [B,S] tokens.

    logits: where the output goes, [N,V] or [B,S,V]. `bound` is what a call is given, by name of an output.
    """

    def __init__(self, memory: Memory, loaded: Loaded, output: str, logits: Buffer, shape: tuple[int, int]) -> None:
        self.memory, self.logits, self.shape = memory, logits, shape
        self.bound: dict[str, Buffer] = {output: logits}
        self.tokens: Buffer | None = None
        if NEXT in loaded.outputs and (shape[1] == 1 or ROWS not in loaded.inputs):
            self.tokens = memory.allocate(shape, np.dtype(np.int64))
            self.bound[NEXT] = memory.reshaped(self.tokens, logits.shape[:-1])
        self.chosen: Array | None = None  # What `tokens` holds, where somebody asked.

    def take(self, want: Want, last: Array | None = None) -> Array:
        """What is wanted of the run before; last: which of S tokens of each row counts, where there are more."""
        if want.what == "token" and self.tokens is not None:
            found = self.memory.download(self.tokens)
            self.chosen = found[:, 0].copy() if last is None else found[np.arange(len(found)), last]
            return self.chosen
        if want.what == "best" and len(self.logits.shape) == 2:
            pairs = self.memory.largest(self.logits, want.k + SPARE)
            if pairs is not None and (found := spread(*pairs, want.k, self.logits.shape[-1])) is not None:
                return found
        found = self.memory.download(self.logits)
        if found.ndim == 3:
            found = found[:, 0] if last is None else found[np.arange(len(found)), last]
        return want.of(found.astype(np.float32, copy=False))

    def feed(self, ids: Buffer, tokens: Array) -> None:
        """Make these tokens [B,1] the next ones that are read; those that were just chosen are there already."""
        mine = self.memory.apart and self.tokens is not None and self.chosen is not None
        if mine and ids.shape == self.shape and np.array_equal(tokens[:, 0], self.chosen):
            assert self.tokens is not None
            self.memory.copy(self.tokens, ids)
        else:
            self.memory.write(ids, tokens)


def spread(values: Array, ids: Array, k: int, width: int) -> Array | None:
    """Logits [N,V] from their largest, [N,K] each, largest first; None where more than these may equal the k-th."""
    values = values.astype(np.float32)
    least = values[:, min(k, values.shape[1]) - 1, None]
    if values.shape[1] < width and (np.isnan(values).any() or bool((values[:, -1:] >= least).any())):
        return None
    found: Any = np.full((len(values), width), -np.inf, np.float32)
    np.put_along_axis(found, ids, np.where(values < least, np.float32(-np.inf), values), axis=-1)
    return found
