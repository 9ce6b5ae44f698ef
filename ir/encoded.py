"""A stored weight that keeps its blocks: its bytes for those who read encodings, its numbers for everybody else."""

from __future__ import annotations

import math

import numpy as np

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


def widest(tensor: Tensor) -> int:
    """Bytes of a tensor in the widest form that it takes on its way: four bytes a number, or its own width if more."""
    return math.prod(tensor.shape) * max(32, tensor.dtype.bits) // 8
