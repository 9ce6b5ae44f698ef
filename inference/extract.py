"""What a model says of the pieces of a text: a label for each token, or the answer to a question in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..frontends.task import ENDS, LOGITS, STARTS, TOKEN_TYPES
from ..frontends.tokenizer import Tokenizer
from ..ir.errors import RuntimeInputError
from ..ir.slots import TOKENS
from .embed import Encoder
from .predict import softmax
from .sampling import Array


@dataclass(frozen=True)
class Tagged:
    """A piece of a text with its likeliest label. start, end: of the piece, in characters."""

    text: str
    label: str
    probability: float
    start: int
    end: int


@dataclass(frozen=True)
class Answer:
    """The likeliest answer in a text: its characters start to end. probability: of this start and this end."""

    text: str
    probability: float
    start: int
    end: int


def tag(
    session: Encoder, tokenizer: Tokenizer, texts: Sequence[str], config: Mapping[str, Any], positions: int | None
) -> list[list[Tagged]]:
    """The label of each token of each text, special tokens left out; names from `id2label` of config.json.

    Raises RuntimeInputError for a text with more tokens than `positions`.
    """
    names: Mapping[str, str] = config.get("id2label") or {}
    found: list[list[Tagged]] = []
    for text in texts:
        read = tokenizer.core.encode(text)
        _check_length(read.ids, positions)
        chances = softmax(session.run(_inputs(read))[LOGITS][0])
        row: list[Tagged] = []
        for (start, end), special, p in zip(read.offsets, read.special_tokens_mask, chances, strict=True):
            if not special:
                best = int(p.argmax())
                label = names.get(str(best), f"LABEL_{best}")
                row.append(Tagged(text[start:end], label, float(p[best]), start, end))
        found.append(row)
    return found


def answer(
    session: Encoder, tokenizer: Tokenizer, question: str, text: str, positions: int | None, *, longest: int = 30
) -> Answer:
    """The piece of `text` that most likely answers the question, of at most `longest` tokens.

    Raises RuntimeInputError where both have more tokens than `positions`, and for a text without tokens.
    """
    read = tokenizer.core.encode(question, text)
    _check_length(read.ids, positions)
    inside = np.array([s == 1 for s in read.sequence_ids])
    if not inside.any():
        raise RuntimeInputError("the text to find an answer in has no tokens")
    results = session.run(_inputs(read))
    first, last = (_probabilities(results[name][0], inside) for name in (STARTS, ENDS))
    # Every pair of a start and an end that is not before it, nor too far behind it.
    pairs = np.tril(np.triu(first[:, None] * last[None]), longest - 1)
    a, b = np.unravel_index(int(pairs.argmax()), pairs.shape)
    start, end = read.offsets[int(a)][0], read.offsets[int(b)][1]
    return Answer(text[start:end], float(pairs[a, b]), start, end)


def _probabilities(scores: Array, inside: Array) -> Array:
    """Of each token of the text to be it; 0 for the question and special tokens."""
    return softmax(np.where(inside, scores.astype(np.float64), -np.inf))


def _inputs(read: Any) -> dict[str, Array]:
    types = np.array([read.type_ids], np.int64)
    given = {TOKENS.ids: np.array([read.ids], np.int64)}
    return given | ({TOKEN_TYPES: types} if types.any() else {})


def _check_length(ids: Sequence[int], positions: int | None) -> None:
    if not ids or (positions is not None and len(ids) > positions):
        raise RuntimeInputError(f"the text has {len(ids)} tokens, expected 1 to {positions or 'any number'}")
