"""The mask guard: look at the masks that really come in, and say which graph is right for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from ...ir.errors import RuntimeInputError, did_you_mean
from ...ir.types import TensorType

Array = np.ndarray[Any, Any]


def right_padded(mask: Array) -> Array | None:
    """Valid tokens of each row, i64 [B], if every row of a 0/1 mask [B,T] is ones and then zeros; else None.

    A row without any token has no last one to go on from, and is None too.
    """
    kept: Array = np.not_equal(mask, 0)
    lengths: Array = np.sum(kept, axis=1)
    if not lengths.all() or bool((kept[:, 1:] & ~kept[:, :-1]).any()):
        return None
    return lengths


def default_positions(mask: Array, rows: int) -> Array:
    """Positions of the last `rows` tokens, i64 [B,rows]: by column in rows padded on the right, else counting kept
    tokens, as the ecosystem does."""
    total = int(mask.shape[1])
    if right_padded(mask) is not None:
        return np.tile(np.arange(total - rows, total), (mask.shape[0], 1))
    counted = np.maximum(np.cumsum(np.not_equal(mask, 0), axis=1) - 1, 0)
    return counted[:, total - rows :].astype(np.int64)


def lengths_allowed(mask: Array, positions: Array | None, rows: int, windowed: bool) -> Array | None:
    """Lengths for the graph that takes lengths in place of masks, if it computes the same; else None.

    rows: new tokens. With a past, rows may not be padded, and several new tokens need batch 1 (the kernel refuses
    more, 1.31.1). positions must be those the kernel takes. Under a window, queries on padding have keys in one
    graph and none in the other, so that no padding is allowed.
    """
    batch, total = (int(n) for n in mask.shape)
    lengths = right_padded(mask)
    if lengths is None or (windowed and int(lengths.min()) < total):
        return None
    past = total - rows
    if past and (int(lengths.min()) < total or (batch > 1 and rows > 1)):
        return None
    if positions is not None and not np.equal(positions, np.arange(past, total)).all():
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


def token_ids(name: str, array: Any, rank: int = 2, bound: int | None = None) -> Array:
    """Token ids i64 of a rank, below a bound. Raises RuntimeInputError for any that is not a token."""
    ids = checked(name, array, np.int64, rank, 1)
    check_bound(name, ids, bound)
    return ids


def check_bound(name: str, array: Array, bound: int | None) -> None:
    """Raises RuntimeInputError for a number that would be read from the end of a table, or from behind it."""
    if array.size and int(array.min()) < 0:
        raise RuntimeInputError(f"{name} holds {int(array.min())}, which is not a token, a position or a type")
    if array.size and bound is not None and int(array.max()) >= bound:
        raise RuntimeInputError(f"{name} holds {int(array.max())}, but the model has {bound}, from 0 to {bound - 1}")


def typed(name: str, array: Any, type: TensorType) -> Array:
    """An input as an array of its type's dtype and rank. Raises RuntimeInputError with what it is instead.

    Integers and bools are converted to the integer type that is wanted, lists of numbers to any; arrays of floats
    are taken in the type's own dtype only.
    """
    wanted = type.dtype.numpy
    try:
        x = np.asarray(array)
    except ValueError:
        raise RuntimeInputError(f"{name} has rows of different lengths, expected {type}") from None
    listed = not isinstance(array, (np.ndarray, np.generic)) and x.dtype.kind in "iubf"
    fits = x.dtype == wanted or (x.dtype.kind in "iub" and wanted.kind in "iu") or (listed and type.dtype.is_float)
    if not fits or x.ndim != type.rank:
        raise RuntimeInputError(f"{name} is {x.dtype}{list(x.shape)}, expected {type}")
    return np.ascontiguousarray(x, dtype=wanted).reshape(x.shape)


def by_name(inputs: Any) -> Mapping[str, Any]:
    """Inputs as a mapping. Raises RuntimeInputError for anything that is not arrays by name."""
    if not isinstance(inputs, Mapping):
        raise RuntimeInputError(f"inputs are {type(inputs).__name__}, expected arrays by name")
    wrong = [k for k in cast("Mapping[Any, Any]", inputs) if not isinstance(k, str)]
    if wrong:
        raise RuntimeInputError(f"inputs have the name {wrong[0]!r}, expected texts")
    return cast("Mapping[str, Any]", inputs)


def check_names(given: Mapping[str, Any], known: Mapping[str, Any] | set[str]) -> None:
    """Raises RuntimeInputError for an input that the model does not have."""
    for name in given:
        if name not in known:
            raise RuntimeInputError(f"the model has no input {name!r}{did_you_mean(name, known)}")
