"""A batch: what every source of training data gives, and what is asked of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..frontends.task import LABELS
from ..frontends.tokenizer import Tokenizer
from ..ir.errors import ConfigError
from ..ir.slots import TARGETS, TOKENS, Stream
from ..ir.tensors import Array

IGNORED = -100
"""Label of positions that do not count."""

Batch = dict[str, Array]
"""Inputs of the graph by name and `labels`, i64, first axis the rows; IGNORED labels do not count.

`document_ids` [B,S], if there, number the documents within a row, which do not see each other.
"""


def check_tokenizer(model: Tokenizer | None, data: Tokenizer, place: str = "", whose: str = "the model's") -> None:
    """Raises ConfigError if the ids of the data mean other texts to the model. None: it came without a tokenizer."""
    difference = "" if model is None else model.difference(data)
    if difference:
        raise ConfigError(f"the data has another tokenizer than {whose}: {difference}", place=place)


def token_inputs(ids: Array, mask: Array, positions: Array, stream: Stream = TOKENS) -> Batch:
    """The inputs of a stream of tokens by name, each i64 [B,S] or [S]."""
    return dict(zip(stream.names, (ids, mask, positions), strict=True))


def labels_of(batch: Batch) -> int:
    """How many labels count."""
    return int((batch[LABELS] != IGNORED).sum())


def tokens_of(batch: Batch) -> int:
    """How many tokens are read: those of source and target, without padding; rows, where there are no tokens."""
    if unit_of(batch) == "rows":
        return len(next(iter(batch.values())))
    masked = [s.mask for s in (TOKENS, TARGETS) if s.mask in batch]
    plain = [s.ids for s in (TOKENS, TARGETS) if s.ids in batch and s.mask not in batch]
    return int(sum(batch[k].sum() for k in masked) + sum(batch[k].size for k in plain))


def unit_of(batch: Batch) -> str:
    """What `tokens_of` counts."""
    return "tokens" if any(k in batch for k in (TOKENS.ids, TARGETS.ids, TARGETS.mask)) else "rows"


def divided(batch: Batch, parts: int) -> Sequence[Batch]:
    """The rows of a batch in at most `parts` nearly equal parts, in order."""
    if parts == 1:
        return [batch]
    places = np.array_split(np.arange(len(next(iter(batch.values())))), parts)
    return [{k: v[p[0] : p[-1] + 1] for k, v in batch.items()} for p in places if len(p)]
