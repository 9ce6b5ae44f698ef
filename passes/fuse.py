"""Raise primitives to composites: every composite's body is its own pattern."""

from __future__ import annotations

from ..ir import ops
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
        Fuse(ops.attention),
        Fuse(ops.rope),
        Fuse(ops.layer_norm),
        Fuse(ops.rms_norm),
        Fuse(ops.gelu),
        Fuse(ops.silu),
        Fuse(ops.relu),
        Fuse(ops.linear, _weight),
        Fuse(ops.embedding, _table),
    ],
)
"""Primitives to layers. Norms before plain arithmetic: a rule never splits what a larger one would take."""

BLOCKS = RewritePass("fuse_blocks", [Fuse(ops.gated_feed_forward), Fuse(ops.feed_forward)])
"""Linear layers and activations to feed-forward blocks."""

RESIDUALS = RewritePass("fuse_residuals", [Fuse(ops.add_rms_norm), Fuse(ops.add_layer_norm)])
"""The residual sum and the norm that reads it."""
