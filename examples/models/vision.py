"""A vision transformer: an image as a row of patches, and a token that sums it up. (Dosovitskiy et al. 2021)

python examples/models/vision.py data.npz      # made-up pictures of stripes: does a row or a column repeat?
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
from monograph import Value, ops
from monograph.frontends.layers import attention, feed_forward


class Vision(mg.Config):
    # `height`, `width` and `channels` are what the task image-classification calls the sizes of its pictures.
    height: int = 16
    width: int = 16
    channels: int = 3
    patch: int = 4
    dim: int = 64
    heads: int = 4
    layers: int = 2
    labels: int = 2

    @property
    def patches(self) -> int:
        return (self.height // self.patch) * (self.width // self.patch)


@mg.model(task="image-classification")
def vision(m: mg.Scope, c: Vision, pixel_values: Value) -> Value:
    batch = pixel_values.shape[0]
    # One number a patch and channel: a convolution whose step is the size of a patch.
    w = m.param("patches.weight", c.dim, c.channels, c.patch, c.patch)
    x = ops.conv2d(pixel_values, w, m.param("patches.bias", c.dim), stride=(c.patch, c.patch))
    x = x.reshape(batch, c.dim, c.patches).transpose(0, 2, 1)
    first = ops.expand(m.param("summary", 1, 1, c.dim), shape=(batch, 1, c.dim))
    x = ops.concat(first, x, axis=1) + m.param("places", 1, 1 + c.patches, c.dim)
    for b in m.layers("layers", c.layers):
        x = x + attention(b / "attention", b.layer_norm("norm1", x, 1e-6), heads=c.heads, biases=True)
        x = x + feed_forward(b, b.layer_norm("norm2", x, 1e-6), 4 * c.dim, "gelu", bias=True)
    x = ops.slice_(m.layer_norm("norm", x, 1e-6), axis=1, start=0, length=1).reshape(batch, c.dim)
    return m.linear("classifier", x, c.labels, bias=True)


def made_up(rows: int, seed: int = 0, c: Vision | None = None) -> dict[str, np.ndarray[Any, Any]]:
    """Noise over stripes, which lie (0) or stand (1)."""
    c, rng = c or Vision(), np.random.default_rng(seed)
    labels = rng.integers(0, 2, rows)
    stripes = np.sin(np.arange(c.height) * 1.3)[:, None] * np.ones(c.width)
    pictures = np.where(labels[:, None, None] == 0, stripes, stripes.T)[:, None]
    noise = rng.standard_normal((rows, c.channels, c.height, c.width))
    return {"pixel_values": (pictures + 0.5 * noise).astype(np.float32), "labels": labels}


if __name__ == "__main__":
    np.savez(Path(sys.argv[1] if len(sys.argv) > 1 else "data.npz"), **made_up(512))  # pyright: ignore[reportArgumentType]
