"""One vector a text from an encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..frontends.pooling import Pooling
from ..frontends.task import HIDDEN
from ..frontends.tokenizer import Tokenizer
from ..ir.errors import RuntimeInputError
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
) -> Array:
    """One vector a text, f32 [len(texts), C]; for a single text [C].

    Texts of like length are run together, `batch` at a time; the result does not depend on that. positions: most
    tokens the model takes. Raises RuntimeInputError for a text that has more and is not cut by the pooling.
    """
    if isinstance(texts, str):
        return embed(session, tokenizer, [texts], pooling, positions=positions)[0]
    if len(texts) == 0:
        raise RuntimeInputError("there are no texts to embed")
    if batch < 1:
        raise RuntimeInputError(f"batch is {batch}, expected at least 1 text at a time")
    rows = [tokens_of(tokenizer, t, pooling.max_length) for t in texts]
    for i, row in enumerate(rows):
        if positions is not None and len(row) > positions:
            raise RuntimeInputError(f"text {i} has {len(row)} tokens, but the model has {positions} positions")
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, Array] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        tokens, lengths = pad([rows[i] for i in chosen], tokenizer.pad_id or 0)
        mask = mask_of(lengths, tokens.shape[1])
        outputs = session.run({TOKENS.ids: tokens, TOKENS.mask: mask})
        if HIDDEN not in outputs:
            raise RuntimeInputError(f"the model gives {', '.join(outputs)}, not the {HIDDEN} of an encoder")
        found |= dict(zip(chosen, pooling(outputs[HIDDEN], mask), strict=True))
    return np.stack([found[i] for i in range(len(rows))])


def tokens_of(tokenizer: Tokenizer, text: str, max_length: int | None) -> list[int]:
    """Ids with special tokens; a text that is too long loses its end, but not the special token after it."""
    ids = tokenizer.encode(text, max_length=max_length)
    if not ids:
        raise RuntimeInputError(f"the text {text!r} has no tokens")
    return ids
