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
    finite. best: f32 [N,V] with the k largest, those that equal the least of them, and perhaps others; the rest -inf.
    """

    what: Literal["logits", "token", "best"] = "logits"
    k: int = 0

    def of(self, logits: Array) -> Array:
        """The same from logits [N,V] on the host."""
        return likeliest(logits) if self.what == "token" else logits


EVERYTHING, TOKEN = Want(), Want("token")


def likeliest(logits: Array) -> Array:
    """What `next_token` gives, from logits [...,V] on the host."""
    flat = logits.reshape(-1, logits.shape[-1])
    found = flat.argmax(axis=-1)
    finite = np.isfinite(flat[np.arange(len(flat)), found])
    return (found if finite.all() else np.where(finite, found, NONE)).reshape(logits.shape[:-1])


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
        known = self.chosen if self.memory.apart and ids.shape == self.shape else None
        if known is not None and self.tokens is not None and np.array_equal(tokens[:, 0], known):
            self.memory.copy(self.tokens, ids)
        else:
            self.memory.write(ids, tokens)


def spread(values: Array, ids: Array, k: int, width: int) -> Array | None:
    """Logits [N,V] from the largest of them, [N,K] each, largest first; None where more than these may equal the k-th,
    also once both are divided by a number."""
    values = values.astype(np.float32)
    if values.shape[1] < width:
        least = values[:, k - 1]
        near = least - 4 * np.finfo(np.float32).eps * np.abs(least)
        if not (values[:, -1] < near).all():  # Not so for NaN either.
            return None
    found: Any = np.full((len(values), width), -np.inf, np.float32)
    np.put_along_axis(found, ids, values, axis=-1)
    return found
