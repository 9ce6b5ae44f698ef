"""The codes that numbers of a block may be rounded to, and rounding in chunks of rows that stay in the cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ...ir.encodings import Encoding
from ...ir.errors import WeightsError
from ...ir.tensors import Array
from ...ir.types import DType
from ..finite import check_finite

_CHUNK = 1 << 17
"""Numbers rounded at a time: what a search holds of them stays in the second-level cache."""


@dataclass(frozen=True)
class Levels:
    """Codes from low to high, counted without sign. zero: the code that stands for 0; None: each block's own."""

    low: int
    high: int
    zero: int | None
    scale: DType

    @staticmethod
    def of(encoding: Encoding) -> Levels:
        """The levels of an encoding. Of 8 bits without zero points it is -127 to 127, so that no product overflows."""
        high = (1 << encoding.bits) - 1
        if encoding.zeros:
            return Levels(0, high, None, encoding.scale)
        return Levels(int(encoding.bits == 8), high, 1 << (encoding.bits - 1), encoding.scale)

    @property
    def middle(self) -> int:
        return (self.high + 1) // 2

    def stored(self, scales: Array) -> Array:
        """Scales as they are stored, f32; 1 where none is left, so that all numbers become 0."""
        kept = scales.astype(self.scale.numpy).astype(np.float32)
        return np.where(kept == 0, np.float32(1), kept)

    def codes(self, x: Array, scales: Array, zeros: Array | float) -> Array:
        """The nearest codes of numbers, f32."""
        y = x / scales
        np.rint(y, out=y)
        y += zeros
        return np.clip(y, self.low, self.high, out=y)


@dataclass(frozen=True)
class Rounded:
    """Codes without sign f32 [n, block], scales and zero points f32 [n, 1]."""

    codes: Array
    scales: Array
    zeros: Array

    def numbers(self) -> Array:
        return (self.codes - self.zeros) * self.scales


Rounding = Callable[[Array, Levels], Rounded]
"""Rounds blocks f32 [n, block]."""


def encode(name: str, weight: Array, encoding: Encoding, rounding: Rounding) -> Array:
    """Stored lines u8 of a weight f32 [rows, columns] with blocks along its rows, rounded chunk by chunk on all cores.

    Raises WeightsError naming the weight if a number is not finite or a scale is too large for its type.
    """
    rows, columns = weight.shape
    encoding.check(DType.f32, weight.shape)
    levels = Levels.of(encoding)
    lines = np.empty(encoding.stored_shape(weight.shape), np.uint8)
    step = max(1, _CHUNK // max(columns, 1))

    def fill(start: int) -> None:
        x = np.asarray(weight[start : start + step], np.float32)
        check_finite(name, x, start)
        blocks = x.reshape(-1, encoding.block_of(columns))
        # A scale that its type cannot hold is infinite, which is told below.
        with np.errstate(invalid="ignore", over="ignore"):
            found = rounding(blocks, levels)
        lines[start : start + step] = _joined(name, encoding, levels, found, len(x))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in [pool.submit(fill, start) for start in range(0, rows, step)]:
            done.result()
    return lines


def _joined(name: str, encoding: Encoding, levels: Levels, rounded: Rounded, rows: int) -> Array:
    if not np.isfinite(rounded.scales).all():
        raise WeightsError(f"{name} has numbers whose scale is too large for {encoding.scale}")
    if not (np.isfinite(rounded.zeros).all() and np.isfinite(rounded.codes).all()):
        raise WeightsError(f"{name} has numbers so large that their codes in {encoding} are none")
    shift = levels.middle if encoding.bits == 8 else 0
    block = rounded.codes.shape[-1]
    codes = (rounded.codes - shift).astype(encoding.codes_type.numpy).reshape(rows, -1, block)
    scales = rounded.scales.reshape(rows, -1, 1)
    zeros = (rounded.zeros - shift).reshape(rows, -1, 1) if encoding.zeros else None
    return encoding.joined(codes, scales, None, zeros)
