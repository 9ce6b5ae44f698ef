"""The mask guard: look at the masks that really come in, and say which graph is right for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...ir.errors import RuntimeInputError, did_you_mean

Array = np.ndarray[Any, Any]


def right_padded(mask: Array) -> Array | None:
    """Valid tokens of each row, i64 [B], if every row of a 0/1 mask [B,T] is ones and then zeros; else None.

    A row without any token has no last one to go on from, and is None too.
    """
    kept = mask != 0
    lengths = kept.sum(axis=1)
    if not lengths.all() or bool((kept[:, 1:] & ~kept[:, :-1]).any()):
        return None
    return lengths


def default_positions(mask: Array, rows: int) -> Array:
    """Positions of the last `rows` tokens, i64 [B,rows]: by column in rows padded on the right, else counting kept
    tokens, as the ecosystem does."""
    total = mask.shape[1]
    if right_padded(mask) is not None:
        return np.broadcast_to(np.arange(total - rows, total), (mask.shape[0], rows)).copy()
    counted = np.maximum(np.cumsum(mask != 0, axis=1) - 1, 0)
    return counted[:, total - rows :].astype(np.int64)


def lengths_allowed(mask: Array, positions: Array | None, rows: int, windowed: bool) -> Array | None:
    """Lengths for the graph that takes lengths in place of masks, if it computes the same; else None.

    rows: new tokens. With a past, rows may not be padded, and several new tokens need batch 1 (the kernel refuses
    more, 1.31.1). positions must be those the kernel takes. Under a window, queries on padding have keys in one
    graph and none in the other, so that no padding is allowed.
    """
    batch, total = mask.shape
    lengths = right_padded(mask)
    if lengths is None or (windowed and int(lengths.min()) < total):
        return None
    past = total - rows
    if past and (int(lengths.min()) < total or (batch > 1 and rows > 1)):
        return None
    if positions is not None and not np.array_equal(
        positions, np.broadcast_to(np.arange(past, total), positions.shape)
    ):
        return None
    return lengths


def checked(name: str, array: Any, dtype: type, rank: int, least: int = 0) -> Array:
    """An input as an array of its integer dtype and rank. Raises RuntimeInputError with what it is instead."""
    try:
        x = np.asarray(array)
    except ValueError:
        raise RuntimeInputError(f"{name} has rows of different lengths, expected integers of rank {rank}") from None
    if x.ndim != rank or x.dtype.kind not in "iub":
        raise RuntimeInputError(f"{name} is {x.dtype}{list(x.shape)}, expected integers of rank {rank}")
    if any(n < least for n in x.shape):
        raise RuntimeInputError(f"{name} has shape {list(x.shape)}, expected at least {least} on every axis")
    return np.ascontiguousarray(x, dtype=dtype)


def token_ids(name: str, array: Any, rank: int = 2) -> Array:
    """Token ids i64 of a rank. Raises RuntimeInputError; a negative one would be read from the end of the table."""
    ids = checked(name, array, np.int64, rank, 1)
    if int(ids.min()) < 0:
        raise RuntimeInputError(f"{name} holds {int(ids.min())}, which is not a token")
    return ids


def check_names(given: Mapping[str, Any], known: Mapping[str, Any] | set[str]) -> None:
    """Raises RuntimeInputError for an input that the model does not have."""
    for name in given:
        if name not in known:
            raise RuntimeInputError(f"the model has no input {name!r}{did_you_mean(name, known)}")
