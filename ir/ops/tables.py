"""Tables that belong to ways of telling positions: sinusoidal rates, ALiBi slopes, buckets of relative distances."""

from __future__ import annotations

import math

import numpy as np

from ..tables import sized, table


@table
def sinusoidal_rates(dim: int) -> tuple[tuple[float], ...]:
    """Radians a position for each pair of `dim` channels, [dim/2, 1]. (Vaswani et al. 2017)"""
    rates = np.exp(np.arange(0, sized(dim), 2, dtype=np.float64) * (-math.log(10000.0) / dim))
    return tuple((r,) for r in rates.tolist())


@table
def alibi_slopes(heads: int) -> tuple[tuple[tuple[float]], ...]:
    """How fast the bias of each head falls with the distance, [H, 1, 1]. (Press et al. 2022)"""
    power = 2 ** math.floor(math.log2(sized(heads)))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-4 * (2 * i + 1) / power) for i in range(heads - power)]
    return tuple(((v,),) for v in slopes)


@table
def relative_buckets(buckets: int, farthest: int, low: int, high: int) -> tuple[int, ...]:
    """The bucket of each distance, key minus query, from low to high; 0 if high is 0 and a key is later.

    Near ones have a bucket each, far ones share, by their logarithm, up to `farthest`. It is rounded in float32, as it
    was in training. (Raffel et al. 2020)
    """
    sized(high + 1 - low)
    count = buckets // 2 if high else buckets
    away = np.abs(np.arange(low, high + 1))
    near = count // 2
    share = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(near))
    share = share / np.float32(math.log(farthest / near)) * np.float32(count - near)
    far = np.minimum(near + share.astype(np.int64), count - 1)
    numbers = np.where(away < near, away, far)
    later = count * (np.arange(low, high + 1) > 0)
    return tuple((numbers + later).tolist())
