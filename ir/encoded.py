"""A stored weight that keeps its blocks: its bytes for those who read encodings, its numbers for everybody else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .encodings import Encoding
from .errors import WeightsError
from .interpret import evaluate
from .op import OPS
from .tensors import Array, Mapped, Tensor
from .types import DType, TensorType

_SLAB = 1 << 22
"""Numbers that are dequantized at a time, so that the peak is the result and not the steps on the way."""


class Encoded(Tensor):
    """Lines of blocks as a tensor: `stored()` gives the bytes as they are, `numpy()` the numbers that they stand for.

    lines: u8, of the shape that the encoding of `type` has for it. Raises WeightsError for another one.
    """

    def __init__(self, lines: Tensor, type: TensorType) -> None:
        if type.encoding is None or lines.type != type.stored:
            raise WeightsError(f"{lines!r} does not hold the lines of {type}, which are {type.stored}")
        self.lines, self.type, self.encoding = lines, type, type.encoding

    def stored(self) -> Array:
        return self.lines.numpy()

    def numpy(self) -> Array:
        stored = self.stored()
        if self.encoding.axis != -1 or stored.ndim < 2:
            return self._decoded(stored, self.type)
        flat = stored.reshape(-1, stored.shape[-1])
        length = self.shape[-1]
        y = np.empty((len(flat), length), self.dtype.numpy)
        step = max(1, _SLAB // max(length, 1))
        for start in range(0, len(flat), step):
            piece = flat[start : start + step]
            y[start : start + step] = self._decoded(piece, TensorType(self.dtype, (len(piece), length), self.encoding))
        return y.reshape(self.shape)

    def _decoded(self, stored: Array, type: TensorType) -> Array:
        return evaluate(OPS["dequantize"], [stored], {}, {}, [type])[0]

    def cast(self, dtype: DType) -> Tensor:
        return Encoded(self.lines, self.type.with_dtype(dtype))

    def rows(self, order: Array) -> Encoded:
        """The same rows (of the first axis) in another order, which no block notices. Raises WeightsError."""
        if self.type.rank < 2 or self.encoding.axis == 0 or len(order) != self.shape[0]:
            raise WeightsError(f"the rows of {self.type} cannot be ordered by {len(order)} numbers")
        return Encoded(Mapped(self.lines, self.lines.type, lambda x: x[order]), self.type)

    def parts(self, axis: int, pieces: Sequence[tuple[int, int]]) -> Encoded:
        """(start, length) pieces along an axis (from 0), side by side. Raises WeightsError where one cuts a block."""
        e, shape = self.encoding, list(self.shape)
        along = e.axis % len(shape)
        shape[axis] = sum(length for _, length in pieces)
        type = TensorType(self.dtype, tuple(shape), e)
        if axis == along:
            block = e.block
            if block and any(n % block for piece in pieces for n in piece):
                raise WeightsError(f"{self.type} cannot be cut at {list(pieces)}, which are no whole blocks")
            return Encoded(Mapped(self.lines, type.stored, lambda x: _cut_lines(e, x, pieces)), type)
        line = axis - (axis > along)
        return Encoded(Mapped(self.lines, type.stored, lambda x: _taken(x, line, pieces)), type)


def _taken(x: Array, axis: int, pieces: Sequence[tuple[int, int]]) -> Array:
    return np.concatenate([x[(slice(None),) * axis + (slice(a, a + n),)] for a, n in pieces], axis)


def _cut_lines(e: Encoding, lines: Array, pieces: Sequence[tuple[int, int]]) -> Array:
    """Pieces of lines, whole blocks each, or of lines that are one block: then each keeps its scale."""
    if e.block:
        blocks = _taken(e.blocks(lines), lines.ndim - 1, [(a // e.block, n // e.block) for a, n in pieces])
        return blocks.reshape(*lines.shape[:-1], -1)
    codes = _taken(e.codes(lines), lines.ndim, pieces)
    zeros = e.zero_points(lines) if e.zeros else None
    return e.joined(codes, e.scales(lines), e.minimums(lines) if e.minimum else None, zeros)


def plain(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as plain numbers, which no target keeps in blocks."""
    return {k: Mapped(t, t.type, lambda x: x) if isinstance(t, Encoded) else t for k, t in weights.items()}
