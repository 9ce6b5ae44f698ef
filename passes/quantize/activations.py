"""Activations as kernels round them to 8 bits on the way into a product, to measure what that does."""

from __future__ import annotations

import numpy as np

from ...ir.tensors import Array


def rounded_by_block(x: Array, block: int) -> Array:
    """x [R,K] as MatMulNBits at accuracy level 4 takes it: each block by its largest number, to -127..127."""
    pad = -x.shape[1] % block
    blocks = np.pad(x, ((0, 0), (0, pad))).reshape(len(x), -1, block)
    step = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(step > 0, np.rint(blocks / step), 0)
    return (codes * step).reshape(len(x), -1)[:, : x.shape[1]].astype(np.float32)


def rounded_by_tensor(x: Array) -> Array:
    """x as DynamicQuantizeLinear takes it: all numbers on one scale of 256 steps between the least and the largest."""
    low, high = min(float(x.min(initial=0.0)), 0.0), max(float(x.max(initial=0.0)), 0.0)
    step = np.float32((high - low) / 255)
    if not step > 0:
        return np.zeros_like(x)
    zero = np.clip(np.rint(-low / step), 0, 255)
    codes = np.clip(np.rint(x / step) + zero, 0, 255)
    return ((codes - zero) * step).astype(np.float32)


def relative_error(found: Array, expected: Array) -> float:
    """Root of the mean squared difference, by that of what was expected; 0 where both are nothing."""
    scale = float(np.square(expected, dtype=np.float64).mean()) if expected.size else 0.0
    error = float(np.square(found.astype(np.float64) - expected).mean()) if expected.size else 0.0
    return (error / scale) ** 0.5 if scale > 0 else float(error > 0)
