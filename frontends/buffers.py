"""Tensors of old checkpoints that follow from the config, and that the reference makes anew whatever they hold.

Each function says whether values are what the config makes of them; its docstring is the reason why they do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..ir.errors import ConfigError
from ..ir.ops import rope_frequencies
from ..ir.tensors import Array
from .rope import rope_settings

Buffer = Callable[[Any, Array], bool]
"""(config, values) -> whether they follow from it."""


def counted(config: Any, x: Array) -> bool:
    """the numbers of the positions"""
    flat = x.reshape(-1)
    return bool(np.array_equal(flat, np.arange(len(flat))))


def zeros(config: Any, x: Array) -> bool:
    """token types of 0, as where none are given"""
    return not x.any()


def causal_mask(config: Any, x: Array) -> bool:
    """the causal mask, which attention has by itself"""
    rows = x.shape[-1] if x.ndim > 1 else 0
    square = rows > 0 and x.shape[-2:] == (rows, rows)
    return square and np.array_equal(x.reshape(-1, rows, rows) != 0, [np.tri(rows) != 0])


def masked_score(config: Any, x: Array) -> bool:
    """the score of a masked key, which gets no weight"""
    return bool((x <= -9000.0).all())


def frequencies(config: Any, x: Array) -> bool:
    """rotary frequencies, which the config gives"""
    try:
        settings = rope_settings(config, partial=getattr(config, "partial", None))
        both = [rope_frequencies(2 * x.size, settings["theta"], s)[0] for s in (None, settings["scaling"])]
    except (ConfigError, AttributeError):
        return False
    wide = x.astype(np.float64).reshape(-1)
    return turned_width(config, settings["partial"]) in (2 * x.size, 2 * x.size - 1) and any(
        np.allclose(wide, one, rtol=1e-2) for one in both
    )


def turned_width(config: Any, partial: float) -> int:
    """How many channels of a head are turned."""
    if hasattr(config, "turned"):
        return int(config.turned)
    width = getattr(config, "width", None) or getattr(config, "head_dim", None) or config.dim // config.heads
    return int(width * partial)


EVERYWHERE: Mapping[str, str | Buffer] = {
    "*rotary_emb.inv_freq": frequencies,
    "*embeddings.position_ids": counted,
    "*embeddings.token_type_ids": zeros,
}
"""By pattern of names, in checkpoints of all families: a buffer, or the reason why any values may be left out."""
CAUSAL: Mapping[str, str | Buffer] = {
    "*.attn.bias": causal_mask,
    "*.attn.masked_bias": masked_score,
    "*.attention.bias": causal_mask,
    "*.attention.masked_bias": masked_score,
}
"""The same in checkpoints of the GPT families."""
