"""Log-probabilities of tokens: as the model gave them, and as they were drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Likely = list[tuple[int, float]]
"""Ids with their log-probabilities, the likeliest first; of equal ones the lower id."""


@dataclass(frozen=True)
class Logprob:
    """Log-probabilities of one token.

    raw: of the model's own logits, before penalty, temperature and filters. processed: of what the token was chosen
    from; -inf where a filter removed it. top_raw, top_processed: the likeliest tokens by either.
    """

    id: int
    raw: float
    processed: float
    top_raw: Likely = field(default_factory=Likely)
    top_processed: Likely = field(default_factory=Likely)


def logprob(id: int, raw: Array, processed: Array, top: int) -> Logprob:
    """What to tell of a token chosen from logits [V], with the `top` likeliest beside it."""
    before, after = log_softmax(raw), log_softmax(processed)
    return Logprob(id, float(before[id]), float(after[id]), likeliest(before, top), likeliest(after, top))


def logprobs_of(logits: Array, tokens: Sequence[int], top: int) -> list[Logprob | None]:
    """What to tell of prompt tokens, each after logits [S,V], which nothing was done to."""
    found: list[Logprob | None] = []
    for row, token in zip(logits, tokens, strict=True):
        raw = log_softmax(row)
        said = likeliest(raw, top)
        found.append(Logprob(token, float(raw[token]), float(raw[token]), said, said))
    return found


def log_softmax(logits: Array) -> Array:
    """Natural logarithms of probabilities over the last axis, in float64; -inf stays."""
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def likeliest(logprobs: Array, top: int) -> Likely:
    """The `top` largest of [V] that are possible at all."""
    top = min(top, len(logprobs))
    if top == 0:
        return []
    least = np.partition(logprobs, -top)[-top]
    found = np.flatnonzero(logprobs >= least)
    order = found[np.argsort(-logprobs[found], kind="stable")][:top]
    return [(int(i), float(logprobs[i])) for i in order if logprobs[i] > -np.inf]
