"""Activations as kernels round them to 8 bits on the way into a product, to measure what that does."""

from __future__ import annotations

import numpy as np

from ...ir.tensors import Array


def rounded_by_block(x: Array, block: int) -> Array:
    """x [R,K] as products over 8-bit activations take it: each block by its largest number, to -127..127.

    MatMulNBits at accuracy level 4 has the blocks of its weights, products of integers one block a row (block 0).
    """
    block = block or x.shape[1]
    pad = -x.shape[1] % block
    blocks = np.pad(x, ((0, 0), (0, pad))).reshape(len(x), -1, block)
    step = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(step > 0, np.rint(blocks / step), 0)
    return (codes * step).reshape(len(x), -1)[:, : x.shape[1]].astype(np.float32)


def relative_error(found: Array, expected: Array) -> float:
    """Root of the mean squared difference, by that of what was expected; 0 where both are nothing."""
    scale = float(np.square(expected, dtype=np.float64).mean()) if expected.size else 0.0
    error = float(np.square(found.astype(np.float64) - expected).mean()) if expected.size else 0.0
    return (error / scale) ** 0.5 if scale > 0 else float(error > 0)
