"""Half-quadratic quantization: scale and zero point under a norm that forgives outliers. (Badri & Shaji 2023)"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.encodings import Encoding
from ...ir.tensors import Array
from .levels import Levels, Rounded, encode
from .rounding import start

_NORM, _BETA, _GROWTH, _ROUNDS = 0.7, 10.0, 1.01, 12
"""Exponent of the norm, weight of the squared part, its growth a round, and rounds: those of the paper, but for
the last, after which nothing moves."""


@dataclass(frozen=True)
class HalfQuadratic:
    """Codes under the norm |error| ** 0.7, which is split into a sparse part and a quadratic one, solved in turn.

    Blocks without zero points fit their scale instead.
    """

    name: str = "hqq"

    def lines(self, name: str, weight: Array, encoding: Encoding) -> Array:
        """See Method."""
        return encode(name, weight, encoding, half_quadratic)


def half_quadratic(x: Array, levels: Levels) -> Rounded:
    """Blocks [n, block] by `HalfQuadratic`."""
    least, zeros = start(x, levels)
    scales = levels.stored(least)
    # As the norm is not a square, an error is measured in units of the largest number of its block.
    unit = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-30))
    beta = _BETA
    best = _codes(x, levels, scales, zeros)
    least_error = _error(x, best, unit)
    for _ in range(_ROUNDS):
        now = _codes(x, levels, scales, zeros)
        outliers = _shrunk((x - now.numbers()) / unit, beta) * unit
        target = x - outliers
        if levels.zero is None:
            zeros = (now.codes - target / scales).mean(-1, keepdims=True)
        scales = _fit(target, now.codes - zeros, levels, scales)
        beta *= _GROWTH
        whole = np.clip(np.rint(zeros), levels.low, levels.high)
        given = _codes(x, levels, scales, whole)
        given = _codes(x, levels, _fit(target, given.codes - whole, levels, scales), whole)
        error = _error(x, given, unit)
        better = (error < least_error)[:, 0]
        least_error[better] = error[better]
        for kept, new in ((best.codes, given.codes), (best.scales, given.scales), (best.zeros, given.zeros)):
            kept[better] = new[better]
    return best


def _codes(x: Array, levels: Levels, scales: Array, zeros: Array) -> Rounded:
    """The nearest codes for scales and zero points, which need not be whole on the way."""
    y = x / scales
    y += zeros
    np.rint(y, out=y)
    return Rounded(np.clip(y, levels.low, levels.high, out=y), scales.copy(), zeros.astype(np.float32))


def _shrunk(error: Array, beta: float) -> Array:
    """What of an error is taken for an outlier: the proximal step of the norm."""
    size = np.abs(error)
    kept = size - np.maximum(size, np.float32(1e-8)) ** np.float32(_NORM - 1) / np.float32(beta)
    return np.sign(error) * np.maximum(kept, 0)


def _fit(target: Array, steps: Array, levels: Levels, otherwise: Array) -> Array:
    below = (steps * steps).sum(-1, keepdims=True)
    found = (steps * target).sum(-1, keepdims=True) / np.where(below == 0, np.float32(1), below)
    return levels.stored(np.where(below == 0, otherwise, found))


def _error(x: Array, r: Rounded, unit: Array) -> Array:
    return (np.abs((x - r.numbers()) / unit) ** np.float32(_NORM)).sum(-1, keepdims=True)
