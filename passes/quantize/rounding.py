"""Rounding to the nearest code, with a search for the scale: clipped by least error, or fitted by weighted squares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.encodings import Encoding
from ...ir.tensors import Array
from .levels import Levels, Rounded, encode

_SHRUNK = tuple(1 - 0.04 * i for i in range(9))
"""By how much the range of a block is clipped at most: to 0.68 of its largest number."""


@dataclass(frozen=True)
class Nearest:
    """The nearest code, with the scale that makes the squared error of a block least among ranges clipped more and
    more. (Banner et al. 2019)"""

    name: str = "rtn"

    def lines(self, name: str, weight: Array, encoding: Encoding) -> Array:
        """See Method."""
        return encode(name, weight, encoding, nearest)


@dataclass(frozen=True)
class Fitted:
    """Codes whose scale and zero point are fitted to the block by weighted least squares, large numbers counting more.

    From each of several ranges: round, fit, round again; the best is kept. (k-quants of llama.cpp)
    """

    name: str = "kquant"

    def lines(self, name: str, weight: Array, encoding: Encoding) -> Array:
        """See Method."""
        return encode(name, weight, encoding, fitted)


def nearest(x: Array, levels: Levels) -> Rounded:
    """Blocks [n, block] by `Nearest`."""
    least, zeros = start(x, levels)
    best = _Best(x, np.ones((), np.float32))
    for factor in _SHRUNK:
        scales = levels.stored(least * np.float32(factor))
        best.offer(Rounded(levels.codes(x, scales, zeros), scales, zeros))
    return best.found


def fitted(x: Array, levels: Levels) -> Rounded:
    """Blocks [n, block] by `Fitted`."""
    weights = np.abs(x)
    weights += np.sqrt(np.mean(x * x, axis=-1, keepdims=True))
    least, zeros = start(x, levels)
    best = _Best(x, weights)
    steps = 1 / (levels.high - levels.middle + 1)
    for i in range(-4, 5):
        scales = levels.stored(least * np.float32(1 / (1 + 0.25 * i * steps)))
        codes = levels.codes(x, scales, zeros)
        moved = zeros if levels.zero is not None else _fitted_zeros(x, codes, weights, levels, zeros)
        scales = _fitted_scales(x, codes - moved, weights, levels, scales)
        codes = levels.codes(x, scales, moved)
        scales = _fitted_scales(x, codes - moved, weights, levels, scales)
        best.offer(Rounded(codes, scales, moved))
    return best.found


def start(x: Array, levels: Levels) -> tuple[Array, Array]:
    """Scales and zero points [n, 1] of the whole range of each block.

    Without zero points the number of largest magnitude is put on the side that has one code more, so a scale may be
    negative. (Q4_0 of llama.cpp)
    """
    high, low = x.max(-1, keepdims=True), x.min(-1, keepdims=True)
    if levels.zero is None:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scales = (high - low) / np.float32(levels.high)
        safe = np.where(scales == 0, np.float32(1), scales)
        return scales, np.clip(np.rint(-low / safe), 0, levels.high)
    zeros = np.full_like(high, levels.zero)
    below, above = levels.zero - levels.low, levels.high - levels.zero
    largest: Array = np.maximum(high, -low)
    if below == above:
        return largest / np.float32(above), zeros
    return np.copysign(largest / np.float32(below), -(high + low)), zeros


class _Best:
    """For each block, the candidate with the least weighted squared error so far."""

    def __init__(self, x: Array, weights: Array) -> None:
        self.x, self.weights = x, weights
        self.error = np.full((len(x), 1), np.inf, np.float32)
        self.found = Rounded(np.empty_like(x), np.empty_like(self.error), np.empty_like(self.error))

    def offer(self, given: Rounded) -> None:
        y = given.numbers()
        y -= self.x
        y *= y
        y *= self.weights
        error = y.sum(-1, keepdims=True)
        better = (error < self.error)[:, 0]
        self.error[better] = error[better]
        for kept, new in zip(_parts(self.found), _parts(given), strict=True):
            kept[better] = new[better]


def _parts(r: Rounded) -> tuple[Array, Array, Array]:
    return r.codes, r.scales, r.zeros


def _fitted_scales(x: Array, steps: Array, weights: Array, levels: Levels, otherwise: Array) -> Array:
    """The scales that fit numbers best, given by how many steps each is away from 0."""
    weighted = weights * steps
    below = (weighted * steps).sum(-1, keepdims=True)
    above = (weighted * x).sum(-1, keepdims=True)
    found = above / np.where(below == 0, np.float32(1), below)
    return levels.stored(np.where(below == 0, otherwise, found))


def _fitted_zeros(x: Array, codes: Array, weights: Array, levels: Levels, otherwise: Array) -> Array:
    """The whole zero points of the line scale * code + minimum that fits numbers best."""
    total = weights.sum(-1, keepdims=True)
    weighted = weights * codes
    sum_c, sum_x = weighted.sum(-1, keepdims=True), (weights * x).sum(-1, keepdims=True)
    sum_cc, sum_cx = (weighted * codes).sum(-1, keepdims=True), (weighted * x).sum(-1, keepdims=True)
    determinant = total * sum_cc - sum_c * sum_c
    slope = total * sum_cx - sum_c * sum_x
    minimum = sum_cc * sum_x - sum_c * sum_cx
    usable = (determinant > 0) & (slope > 0)
    zeros = np.rint(-minimum / np.where(usable, slope, np.float32(1)))
    return np.where(usable, np.clip(zeros, 0, levels.high), otherwise).astype(np.float32)
