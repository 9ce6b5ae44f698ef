"""Raise primitives to composites: every composite's body is its own pattern."""

from __future__ import annotations

from ..ir.graph import Value
from .manager import RewritePass
from .pattern import Fuse


def _weight(w: Value, **_: object) -> bool | str:
    return w.is_param or f"{w!r} is not a parameter"


def _table(table: Value, **_: object) -> bool | str:
    return table.is_param or f"{table!r} is not a parameter"


LAYERS = RewritePass(
    "fuse_layers",
    [
        Fuse("attention"),
        Fuse("rope"),
        Fuse("layer_norm"),
        Fuse("rms_norm"),
        Fuse("gelu"),
        Fuse("silu"),
        Fuse("relu"),
        Fuse("linear", _weight),
        Fuse("embedding", _table),
    ],
)
"""Primitives to layers. Norms before plain arithmetic: a rule never splits what a larger one would take."""

BLOCKS = RewritePass("fuse_blocks", [Fuse("gated_feed_forward"), Fuse("feed_forward")])
"""Linear layers and activations to feed-forward blocks."""

RESIDUALS = RewritePass("fuse_residuals", [Fuse("add_rms_norm"), Fuse("add_layer_norm")])
"""The residual sum and the norm that reads it."""
