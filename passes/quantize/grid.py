"""The numbers that the codes of a block can stand for, once its scale is chosen, and the nearest code to a number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.encodings import Encoding
from ...ir.tensors import Array


@dataclass(frozen=True)
class Grid:
    """Code c of a block stands for scale * c + low, for c from first to last. scale, low: f32 [rows, blocks]."""

    scale: Array
    low: Array
    first: int
    last: int

    @staticmethod
    def of(encoding: Encoding, lines: Array) -> Grid:
        """The grid that stored lines [rows, bytes] lie on."""
        scale = encoding.scales(lines)[..., 0].astype(np.float32)
        if encoding.minimum:
            low = encoding.minimums(lines)[..., 0].astype(np.float32)
        else:
            zero = encoding.zero_points(lines)[..., 0].astype(np.float32) if encoding.zeros else encoding.zero
            low = -scale * zero
        return Grid(scale, low, *encoding.levels)

    def codes(self, w: Array, block: int) -> Array:
        """The codes nearest to numbers w [rows], of one block."""
        scale, low = self.scale[:, block], self.low[:, block]
        with np.errstate(divide="ignore", invalid="ignore"):
            nearest = np.rint((w - low) / scale)
        return np.clip(np.where(scale == 0, self.first, nearest), self.first, self.last)

    def values(self, codes: Array, block: int) -> Array:
        """What codes [rows] of one block stand for."""
        return self.scale[:, block] * codes + self.low[:, block]


def numbers(encoding: Encoding, lines: Array) -> Array:
    """What stored lines [rows, bytes] stand for, f32 [rows, columns]."""
    grid = Grid.of(encoding, lines)
    found = encoding.codes(lines).astype(np.float32)
    found *= grid.scale[..., None]
    found += grid.low[..., None]
    return found.reshape(len(lines), -1)


def recoded(encoding: Encoding, lines: Array, codes: Array) -> Array:
    """Stored lines with the scales of `lines` and other codes, [rows, columns]."""
    blocks = codes.astype(encoding.codes_type.numpy).reshape(encoding.codes(lines).shape)
    minimums = encoding.minimums(lines) if encoding.minimum else None
    zeros = encoding.zero_points(lines) if encoding.zeros else None
    return encoding.joined(blocks, encoding.scales(lines), minimums, zeros)
