"""The training objective as part of the graph: `labels` in, `loss` out."""

from __future__ import annotations

from ..data.batch import IGNORED
from ..frontends.task import LABELS, LOGITS
from ..ir.errors import MonographError
from ..ir.graph import Graph, building
from ..ir.ops import cast, cross_entropy
from ..ir.types import TensorType, f32, i64

LOSS = "loss"


def with_loss(graph: Graph, *, label_smoothing: float = 0.0, keep_logits: bool = False) -> Graph:
    """A copy of a graph with output `logits` [B,S,V] that takes `labels` i64 [B,S] and gives the scalar `loss`.

    labels[b,s] is the token that should follow position s (already shifted), or IGNORED. The loss is at least f32.
    Raises MonographError if the graph has no output `logits`.
    """
    if LOGITS not in graph.outputs:
        found = ", ".join(graph.outputs) or "none"
        raise MonographError(f"graph {graph.name} has no output `{LOGITS}` to train on (outputs: {found})")
    new = graph.copy()
    logits = new.outputs[LOGITS]
    with building(new):
        wide = logits if logits.dtype.bits >= 32 else cast(logits, dtype=f32)
        labels = new.input(LABELS, TensorType(i64, logits.shape[:-1]))
        loss = cross_entropy(wide, labels, ignore_index=IGNORED, label_smoothing=label_smoothing)
    if not keep_logits:
        new.outputs.clear()
    new.output(LOSS, loss)
    return new
