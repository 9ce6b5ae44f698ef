"""Activations as kernels round them to 8 bits on the way into a product, to measure what that does."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ...ir.encodings import Encoding
from ...ir.tensors import Array


def rounded_by_block(x: Array, block: int, rng: np.random.Generator | None = None) -> Array:
    """x [R,K] as products over 8-bit activations take it: each block by its largest number, to -127..127.

    MatMulNBits at accuracy level 4 has the blocks of its weights, products of integers one block a row (block 0). rng:
    rounds up or down by chance, as likely as the number is near, in place of to the nearest.
    """
    block = block or x.shape[1]
    pad = -x.shape[1] % block
    blocks = np.pad(x, ((0, 0), (0, pad))).reshape(len(x), -1, block)
    step = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = blocks / step
        steps = np.rint(steps) if rng is None else np.floor(steps + rng.random(steps.shape, np.float32))
        codes = np.where(step > 0, steps, 0)
    return (codes * step).reshape(len(x), -1)[:, : x.shape[1]].astype(np.float32)


def rounding(
    encodings: Mapping[str, Encoding], rng: np.random.Generator | None = None
) -> Callable[[str, Array], Array]:
    """What a Stream reads activations with: those of the named weights as their kernels round them."""

    def rounded(name: str, x: Array) -> Array:
        if name not in encodings:
            return x
        rows = x.reshape(-1, x.shape[-1]).astype(np.float32, copy=False)
        return rounded_by_block(rows, encodings[name].block, rng).reshape(x.shape).astype(x.dtype, copy=False)

    return rounded


def relative_error(found: Array, expected: Array) -> float:
    """Root of the mean squared difference, by that of what was expected; 0 where both are nothing."""
    scale = float(np.square(expected, dtype=np.float64).mean()) if expected.size else 0.0
    error = float(np.square(found.astype(np.float64) - expected).mean()) if expected.size else 0.0
    return (error / scale) ** 0.5 if scale > 0 else float(error > 0)
