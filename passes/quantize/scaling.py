"""Factors for channels, searched: AWQ for codes of weights (Lin et al. 2023), SmoothQuant for activations in 8 bits
(Xiao et al. 2023). Both leave the graph as it is, see `folding`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.tensors import Array
from .activations import rounded_by_block
from .folding import Fold
from .statistics import Statistics

GRID = 20
"""Exponents that are tried, from 0 on."""

ROWS = 256
"""Outputs of each layer on which a choice is measured."""

_LEAST = 1e-4

Rounding = Callable[[str, Array], Array]
"""(path of a weight, numbers f32 [rows, columns]) => the numbers that are left of it."""


@dataclass(frozen=True)
class Found:
    """factors: f32, by number of the fold; None where no factors are better. before, after: mean squared errors."""

    factors: Array | None
    exponent: float
    before: float
    after: float


def sampled(weight: Array, rows: int = ROWS) -> Array:
    """Some rows of a weight, evenly over all of them."""
    return np.ascontiguousarray(weight[:: max(1, -(-len(weight) // rows))])


def awq(statistics: Statistics, weights: Mapping[str, Array], fold: Fold, rounding: Rounding) -> Found:
    """Factors mean|x| ** e, with the e of a grid for which the layers' outputs are nearest to what they were."""
    mean = _by_number(statistics.mean, fold)
    candidates = [(e, _centred(np.maximum(mean**e, _LEAST))) for e in np.arange(GRID) / GRID]
    x = statistics.rows

    def error(columns: Array) -> float:
        parts = (x @ (rounding(k, w * columns) / columns - w).T for k, w in weights.items())
        return _mean_square(parts)

    return _best(candidates, fold, error)


def smooth(statistics: Statistics, weights: Mapping[str, Array], fold: Fold, rounding: Rounding) -> Found:
    """Factors max|x| ** e / max|w| ** (1 - e): what activations find hard moves to the weights. e: of a grid."""
    largest = np.maximum(_by_number(statistics.largest, fold, np.maximum), 1e-5)
    heaviest = np.maximum.reduce([np.abs(w).max(0) for w in weights.values()])
    heaviest = np.maximum(_by_number(heaviest, fold, np.maximum), 1e-5)
    candidates = [(0.0, np.ones_like(largest))]
    candidates += [(e, _centred(np.maximum(largest**e / heaviest ** (1 - e), 1e-5))) for e in np.arange(1, GRID) / GRID]
    x = statistics.rows

    def error(columns: Array) -> float:
        coarse = rounded_by_block(x / columns, 0)
        return _mean_square(coarse @ rounding(k, w * columns).T - x @ w.T for k, w in weights.items())

    return _best(candidates, fold, error)


def _best(candidates: Sequence[tuple[float, Array]], fold: Fold, error: Callable[[Array], float]) -> Found:
    errors = [error(factors[fold.channels]) for _, factors in candidates]
    at = int(np.argmin(errors))
    exponent, factors = candidates[at]
    return Found(factors.astype(np.float32) if at else None, float(exponent), errors[0], errors[at])


def _by_number(x: Array, fold: Fold, join: np.ufunc | None = None) -> Array:
    """Channels that share a factor, as one: their mean, or what `join` makes of them."""
    if join is not None:
        found = np.zeros(fold.count, np.float32)
        join.at(found, fold.channels, x)
        return found
    total = np.bincount(fold.channels, x, fold.count)
    return (total / np.bincount(fold.channels, minlength=fold.count)).astype(np.float32)


def _centred(factors: Array) -> Array:
    """Factors whose least and largest are as far from 1, so that no number grows without need."""
    return (factors / np.sqrt(factors.max() * factors.min())).astype(np.float32)


def _mean_square(parts: Iterator[Array]) -> float:
    return float(sum(float(np.square(p, dtype=np.float64).mean()) for p in parts))
