"""What a caller may give as prompts, brought to one form: a list of ids per row, without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from ..frontends.tokenizer import Tokenizer
from ..ir.errors import RuntimeInputError
from .sampling import Array

Message = Mapping[str, Any]
_LARGEST = 2**31 - 1
"""No vocabulary has an id above it."""


def rows_of(
    prompts: Any, tokenizer: Tokenizer | None, *, attention_mask: Any = None, chat: bool = False
) -> list[list[int]]:
    """The ids of each prompt.

    prompts: a text or a list of texts; ids, a list of them, or an array [B,S] with `attention_mask` [B,S] (padding
    left or right, 1 = token). With `chat`: a text (what the user says), a conversation [{"role", "content"}, ...],
    or a list of either, put through the chat template. Raises RuntimeInputError naming the row.
    """
    if attention_mask is not None:
        return _masked(prompts, attention_mask)
    prompts = _array(prompts, "prompts") if hasattr(prompts, "__array__") else prompts
    if not isinstance(prompts, (Sequence, np.ndarray)) or isinstance(prompts, (bytes, bytearray)):
        name = type(cast("object", prompts)).__name__
        raise RuntimeInputError(f"prompts are {name}, expected a text, ids, or a list of either")
    items: Sequence[Any] = cast("Sequence[Any]", prompts) if is_batch(prompts, chat=chat) else [prompts]
    if len(items) == 0:
        raise RuntimeInputError("there are no prompts")
    rows = [_row(item, tokenizer, chat, i) for i, item in enumerate(items)]
    for i, row in enumerate(rows):
        if not row:
            raise RuntimeInputError(f"prompt {i} has no tokens; a model needs at least one to go on from")
    return rows


def is_batch(prompts: Any, *, chat: bool = False) -> bool:
    """Whether `prompts` holds several prompts: not for one text, one list of ids or (with `chat`) one conversation."""
    if isinstance(prompts, str):
        return False
    if isinstance(prompts, np.ndarray):
        return prompts.ndim == 2
    first = prompts[0] if len(prompts) > 0 else ()
    return not (_is_id(first) or (chat and isinstance(first, Mapping)))


def pad(rows: Sequence[Sequence[int]], fill: int = 0) -> tuple[Array, Array]:
    """(tokens i64 [B,S] padded on the right, lengths i64 [B])."""
    lengths = np.array([len(r) for r in rows], np.int64)
    tokens = np.full((len(rows), int(lengths.max())), fill, np.int64)
    for target, row in zip(tokens, rows, strict=True):
        target[: len(row)] = row
    return tokens, lengths


def mask_of(lengths: Array, width: int) -> Array:
    """1 for the first lengths[b] of `width` columns, else 0: i64 [B,width]."""
    return np.less(np.arange(width), lengths[:, None]).astype(np.int64)


_NO_TOKENIZER = "give token ids, such as [5, 6, 7], or build a model that has a tokenizer"


def _row(item: Any, tokenizer: Tokenizer | None, chat: bool, index: int) -> list[int]:
    if isinstance(item, str) or chat:
        if tokenizer is None:
            raise RuntimeInputError(f"prompt {index} is text, but there is no tokenizer", hint=_NO_TOKENIZER)
        if not chat:
            return tokenizer.encode(item)
        messages: Any = [{"role": "user", "content": item}] if isinstance(item, str) else item
        if not isinstance(messages, Sequence) or not all(isinstance(m, Mapping) for m in cast("list[Any]", messages)):
            raise RuntimeInputError(f"prompt {index} is not a conversation: a list of {{'role', 'content'}}")
        # The template writes BOS itself where the model wants it.
        return tokenizer.encode(tokenizer.chat(cast("Sequence[Message]", messages)), add_special=False)
    found = _array(item, f"prompt {index}")
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise RuntimeInputError(f"prompt {index} is {type(item).__name__}, expected a text or a list of ids")
    ids = [int(i) for i in found]
    strange = next((i for i in ids if not 0 <= i <= _LARGEST), None)
    if strange is not None:
        raise RuntimeInputError(f"prompt {index} has the id {strange}, expected 0 to {_LARGEST}")
    return ids


def _array(x: Any, name: str) -> Array:
    try:
        return np.asarray(x)
    except (ValueError, OverflowError):
        raise RuntimeInputError(f"{name} has rows of different lengths: pad them, or leave the mask out") from None


def _masked(ids: Any, attention_mask: Any) -> list[list[int]]:
    tokens, mask = _array(ids, "prompts"), _array(attention_mask, "attention_mask")
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        raise RuntimeInputError(
            f"with an attention_mask prompts must be ids [B,S], not {tokens.dtype}{list(tokens.shape)}"
        )
    if mask.shape != tokens.shape:
        raise RuntimeInputError(f"attention_mask is {list(mask.shape)} but the ids are {list(tokens.shape)}")
    return [_compact(row, m, i) for i, (row, m) in enumerate(zip(tokens, mask, strict=True))]


def _compact(row: Array, mask: Array, index: int) -> list[int]:
    """The tokens of one padded row. Raises RuntimeInputError if they are not one unbroken run."""
    if not np.isin(mask, (0, 1)).all():
        raise RuntimeInputError(f"attention_mask of prompt {index} has the value {mask[~np.isin(mask, (0, 1))][0]}")
    kept = np.flatnonzero(mask)
    if len(kept) == 0:
        raise RuntimeInputError(f"attention_mask of prompt {index} is all zeros: there is no token to go on from")
    first, last = int(kept[0]), int(kept[-1])
    if last - first + 1 != len(kept):
        hole = int(np.flatnonzero(np.diff(kept) > 1)[0])
        raise RuntimeInputError(
            f"attention_mask of prompt {index} has a hole at {int(kept[hole]) + 1}, between tokens {first} and {last}",
            hint="a prompt is one unbroken run of tokens with padding on its left or right; remove what is masked out",
        )
    return [int(i) for i in row[first : last + 1]]


def _is_id(x: Any) -> bool:
    return isinstance(x, (int, np.integer)) and not isinstance(x, bool)
