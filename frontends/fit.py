"""Do a config and a checkpoint belong together? Asked before a graph is built from numbers that a file claims."""

from __future__ import annotations

from ..ir.errors import WeightsError
from ..ir.weights import Weights
from .dsl import Config

_SIZES = (
    "vocab", "dim", "ffn", "heads", "kv_heads", "head_dim", "max_positions", "experts", "groups", "taps", "multiple",
)  # fmt: skip


def check_plausible(config: Config, weights: Weights) -> None:
    """Refuse sizes below 1, more layers than there are tensors, and heads, experts or taps beyond any tensor.

    Everything else is compared tensor by tensor once the graph is there; these would make the graph itself grow
    without limit, or divide by zero. Raises WeightsError with the numbers.
    """
    for name in _SIZES:
        size = getattr(config, name, None)
        if size is not None and size < 1:
            raise WeightsError(f"has a config that says {name} = {size}", place=weights.place)
    for name in ("layers", "decoder_layers"):
        layers = getattr(config, name, 0)
        if layers > len(weights):
            raise WeightsError(f"has {len(weights)} tensors, but its config says {layers} layers", place=weights.place)
    widest = max((n for t in weights.values() for n in t.shape), default=0)
    for name in ("experts", "taps"):
        count = getattr(config, name, 0)
        if count > widest:
            what = f"has tensors of width up to {widest}, but its config says {count} {name}"
            raise WeightsError(what, place=weights.place)
    width = getattr(config, "width", 1)
    if not 1 <= width <= widest:
        what = f"has tensors of width up to {widest}, but its config says heads of {width} channels"
        raise WeightsError(what, place=weights.place)
