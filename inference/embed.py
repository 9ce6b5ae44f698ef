"""One vector a text from an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Protocol

import numpy as np

from ..frontends.pooling import Pooling
from ..frontends.task import HIDDEN
from ..frontends.tokenizer import Tokenizer
from ..ir.errors import RuntimeInputError, did_you_mean
from ..ir.slots import TOKENS
from .prompts import mask_of, pad
from .sampling import Array


class Encoder(Protocol):
    """A model without state."""

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Outputs by name: `last_hidden_state` [B,S,C] for `input_ids` and `attention_mask` i64 [B,S]."""
        ...


def embed(
    session: Encoder,
    tokenizer: Tokenizer,
    texts: str | Sequence[str],
    pooling: Pooling,
    *,
    batch: int = 32,
    positions: int | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
) -> Array:
    """One vector a text, f32 [len(texts), C]; for a single text [C].

    Texts of like length are run together, `batch` at a time; the result does not depend on that. positions: most
    tokens the model takes. prompt: put before each text (None: the one of the pooling called `prompt_name`, or its
    usual one). Raises RuntimeInputError for a text that is too long and not cut by the pooling, or has ids that the
    model does not know, and for an unknown prompt.
    """
    if isinstance(texts, str):
        one = embed(session, tokenizer, [texts], pooling, positions=positions, prompt=prompt, prompt_name=prompt_name)
        return one[0]
    if not isinstance(texts, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance] - of a caller
        raise RuntimeInputError(f"texts are {type(texts).__name__}, expected a text or a list of texts")
    if len(texts) == 0:
        raise RuntimeInputError("there are no texts to embed")
    if not isinstance(batch, Integral) or batch < 1:
        raise RuntimeInputError(f"batch is {batch!r}, expected at least 1 text at a time")
    rows, before = read(tokenizer, texts, pooling, positions=positions, prompt=prompt, prompt_name=prompt_name)
    return embed_rows(session, rows, pooling, batch=batch, before=before, fill=tokenizer.pad_id or 0)


def read(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pooling: Pooling,
    *,
    positions: int | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
) -> tuple[list[list[int]], int]:
    """(the ids of each text, how many of a row's first tokens are not pooled). Arguments and errors as for `embed`."""
    prompt = _prompt(pooling, prompt, prompt_name)
    rows = [tokens_of(tokenizer, _read(pooling, prompt, t, i), pooling.max_length) for i, t in enumerate(texts)]
    for i, row in enumerate(rows):
        if positions is not None and len(row) > positions:
            raise RuntimeInputError(f"text {i} has {len(row)} tokens, but the model has {positions} positions")
    return rows, _length(tokenizer, pooling, prompt)


def embed_rows(
    session: Encoder,
    rows: Sequence[Sequence[int]],
    pooling: Pooling,
    *,
    batch: int = 32,
    before: int = 0,
    fill: int = 0,
) -> Array:
    """One vector a row of ids, f32 [len(rows), C]. before: tokens of a prompt that are not pooled. fill: padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, Array] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        tokens, lengths = pad([rows[i] for i in chosen], fill)
        mask = mask_of(lengths, tokens.shape[1])
        outputs = session.run({TOKENS.ids: tokens, TOKENS.mask: mask})
        if HIDDEN not in outputs:
            raise RuntimeInputError(f"the model gives {', '.join(outputs)}, not the {HIDDEN} of an encoder")
        found |= dict(zip(chosen, pooling(outputs[HIDDEN], mask, before), strict=True))
    return np.stack([found[i] for i in range(len(rows))])


def _prompt(pooling: Pooling, prompt: str | None, name: str | None) -> str:
    """The text that stands before each text. Raises RuntimeInputError for a name that is not known."""
    if prompt is not None:
        return prompt
    name = pooling.default_prompt if name is None else name
    if name is None:
        return ""
    if name not in pooling.prompts:
        known = ", ".join(pooling.prompts) or "none"
        what = f"no prompt is called {name!r}{did_you_mean(name, pooling.prompts)}"
        raise RuntimeInputError(what, hint=f"known: {known}")
    return pooling.prompts[name]


def _read(pooling: Pooling, prompt: str, text: object, index: int) -> str:
    """One text as the model reads it."""
    if not isinstance(text, str):
        raise RuntimeInputError(f"text {index} is {type(text).__name__}, expected a text")
    whole = prompt + text
    return whole.lower() if pooling.lower_case else whole


def _length(tokenizer: Tokenizer, pooling: Pooling, prompt: str) -> int:
    """How many tokens at the start of a row are the prompt's, without a special one after it; 0 if all are pooled."""
    if not prompt or pooling.include_prompt:
        return 0
    ids = tokens_of(tokenizer, _read(pooling, prompt, "", 0), pooling.max_length)
    return len(ids) - (ids[-1] in tokenizer.special_ids)


def tokens_of(tokenizer: Tokenizer, text: str, max_length: int | None) -> list[int]:
    """Ids with special tokens; a text that is too long loses its end, but not the special token after it."""
    ids = tokenizer.encode(text, max_length=max_length)
    if not ids:
        raise RuntimeInputError(f"the text {text!r} has no tokens")
    return ids
