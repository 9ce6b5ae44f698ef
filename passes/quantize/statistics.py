"""What calibration keeps of the activations that layers read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.errors import WeightsError
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
    width = group.x.shape[-1]
    if not isinstance(width, int):
        raise WeightsError(f"{group.x!r} has {width} channels, expected a number")
    tokens = sum(len(x) for x in group.rows())
    step = max(1, -(-tokens // keep))
    total, largest = np.zeros(width), np.zeros(width, np.float32)
    product = np.zeros((width, width), gram_type(width).numpy) if gram else None
    rows: list[Array] = []
    before = 0
    for x in group.rows():
        size = np.abs(x)
        total += size.sum(0, dtype=np.float64)
        largest = np.maximum(largest, size.max(0, initial=0.0))
        if product is not None:
            product += x.T @ x
        rows.append(np.array(x[-before % step :: step]))  # A copy: the pages of the rest go.
        before += len(x)
    return Statistics(tokens, (total / max(tokens, 1)).astype(np.float32), largest, np.concatenate(rows), product)
