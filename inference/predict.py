"""What a model without state says of texts: a label, or the tokens that a mask hides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..frontends.task import LOGITS
from ..frontends.tokenizer import Tokenizer
from ..ir.errors import RuntimeInputError
from ..ir.slots import TOKENS
from .embed import Encoder
from .prompts import mask_of, pad
from .sampling import Array


@dataclass(frozen=True)
class Label:
    """The likeliest label of a text. probabilities: of all labels, likeliest first."""

    label: str
    probability: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Guess:
    """A token that may stand in place of a mask, as text."""

    token: str
    id: int
    probability: float


def classify(
    session: Encoder, tokenizer: Tokenizer, texts: Sequence[str], config: Mapping[str, Any], positions: int | None
) -> list[Label]:
    """The label of each text; names from `id2label` of config.json.

    Raises RuntimeInputError for a text that has more tokens than `positions`, and for a model whose logits are not
    those of labels of which one is right.
    """
    kind = config.get("problem_type") or "single_label_classification"
    if kind != "single_label_classification":
        raise RuntimeInputError(f"config.json has problem_type {kind}: its outputs are not probabilities of one label")
    found: dict[int, Label] = {}
    for rows, logits, _ in outputs(session, tokenizer, texts, positions):
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise RuntimeInputError(
                f"the model gives {list(logits.shape)}, expected logits of two or more labels a row"
            )
        names: Mapping[str, str] = config.get("id2label") or {}
        for row, p in zip(rows, softmax(logits), strict=True):
            order: list[int] = np.argsort(-p, kind="stable").tolist()
            by_name = {names.get(str(i), f"LABEL_{i}"): float(p[i]) for i in order}
            best = next(iter(by_name))
            found[row] = Label(best, by_name[best], by_name)
    return [found[i] for i in range(len(texts))]


def fill(
    session: Encoder, tokenizer: Tokenizer, texts: Sequence[str], positions: int | None, top: int = 5
) -> list[list[list[Guess]]]:
    """For each text and each mask in it the `top` likeliest tokens.

    Raises RuntimeInputError for a text without a mask, or with more tokens than `positions`.
    """
    if top < 1:
        raise RuntimeInputError(f"top is {top}, expected at least 1")
    found: dict[int, list[list[Guess]]] = {}
    for rows, logits, tokens in outputs(session, tokenizer, texts, positions):
        for row, values, ids in zip(rows, logits, tokens, strict=True):
            places = np.flatnonzero(ids == tokenizer.mask_id)
            if not len(places):
                name = "" if tokenizer.mask_id is None else f" {tokenizer.core.id_to_token(tokenizer.mask_id)}"
                raise RuntimeInputError(f"text {row} has no mask{name} to fill")
            found[row] = [_best(tokenizer, p, top) for p in softmax(values[places])]
    return [found[i] for i in range(len(texts))]


def _best(tokenizer: Tokenizer, p: Array, top: int) -> list[Guess]:
    best = np.argsort(-p, kind="stable")[:top]
    return [Guess(tokenizer.decode([int(i)], skip_special=False).strip(), int(i), float(p[i])) for i in best]


def outputs(
    session: Encoder, tokenizer: Tokenizer, texts: Sequence[str], positions: int | None, batch: int = 32
) -> Iterator[tuple[list[int], Array, Array]]:
    """(numbers of the texts, their logits, their ids padded on the right), texts of like length together."""
    if not len(texts):
        raise RuntimeInputError("there are no texts")
    ids = [tokenizer.encode(t) for t in texts]
    for i, row in enumerate(ids):
        if not row or (positions is not None and len(row) > positions):
            raise RuntimeInputError(f"text {i} has {len(row)} tokens, expected 1 to {positions or 'any number'}")
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        tokens, lengths = pad([ids[i] for i in rows], tokenizer.pad_id or 0)
        mask = mask_of(lengths, tokens.shape[1])
        yield rows, session.run({TOKENS.ids: tokens, TOKENS.mask: mask})[LOGITS], tokens


def softmax(logits: Array) -> Array:
    """Over the last axis, in f64."""
    wide = logits.astype(np.float64)
    e = np.exp(wide - wide.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
