"""What calibration keeps of the activations that layers read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.tensors import Array
from ...ir.types import DType
from .stream import Group

ROWS = 256
"""Tokens whose activations are kept to measure errors on."""

_WIDE = 4096
"""Channels up to which x.T @ x is kept in f64."""


@dataclass(frozen=True)
class Statistics:
    """Of the input x of some layers. tokens: how many. mean, largest: of |x|, f32 [K]. rows: some of x, f32 [R,K].

    gram: x.T @ x [K,K], where it was asked for.
    """

    tokens: int
    mean: Array
    largest: Array
    rows: Array
    gram: Array | None = None


def gram_type(channels: int) -> DType:
    """In what x.T @ x is kept for so many channels."""
    return DType.f64 if channels <= _WIDE else DType.f32


def gathered(group: Group, *, gram: bool = False, keep: int = ROWS) -> Statistics:
    """Statistics of all tokens that a group of layers reads."""
    tokens, total, largest, product = 0, np.zeros(0), np.zeros(0, np.float32), np.zeros((0, 0))
    kept: list[Array] = []
    for x in group.rows():
        if not tokens:
            width = x.shape[1]
            total, largest = np.zeros(width), np.zeros(width, np.float32)
            product = np.zeros((width, width), gram_type(width).numpy) if gram else product
        size = np.abs(x)
        total += size.sum(0, dtype=np.float64)
        largest = np.maximum(largest, size.max(0, initial=0.0))
        if gram:
            product += x.T @ x
        kept.append(x)
        tokens += len(x)
    rows = _spread(kept, tokens, keep)
    return Statistics(tokens, (total / max(tokens, 1)).astype(np.float32), largest, rows, product if gram else None)


def _spread(parts: list[Array], tokens: int, keep: int) -> Array:
    """About `keep` rows, evenly over all parts, which are read from the disk only there."""
    step = max(1, -(-tokens // keep))
    chosen: list[Array] = []
    before = 0
    for part in parts:
        chosen.append(np.array(part[-before % step :: step]))
        before += len(part)
    return np.concatenate(chosen) if chosen else np.zeros((0, 0), np.float32)
