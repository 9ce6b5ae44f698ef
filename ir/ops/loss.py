"""Training losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import backward_reads as reads
from .. import shard_rules
from ..errors import check
from ..graph import Node, Value
from ..op import Op, op
from ..types import TensorType, i64
from .checks import floating, not_scalar
from .elementwise import cast, constant, exp, log, maximum
from .logic import equal, logical_not, where
from .reduce import max, mean, sum
from .shape import reshape, take_along_axis

if TYPE_CHECKING:
    from ..layout import Layout


class CrossEntropy(Op):
    """Mean of -log softmax(logits)[label] over labels that are not `ignore_index`; a scalar.

    logits [..., V], labels i64 [...]. With label_smoothing e the target is (1-e) on the label plus e/V on every
    class (Szegedy et al. 2016). With no valid label the loss is 0.
    """

    sensitive = True
    shard = shard_rules.needs_all

    def infer(
        self, logits: Value, labels: Value, *, ignore_index: int = -100, label_smoothing: float = 0.0
    ) -> TensorType:
        floating(logits=logits)
        not_scalar(logits=logits)
        check(labels.dtype == i64, f"labels are {labels.dtype}, expected i64")
        check(labels.shape == logits.shape[:-1], f"labels are {labels.type} but logits are {logits.type}")
        check(0.0 <= label_smoothing < 1.0, f"label_smoothing is {label_smoothing}, expected 0 <= e < 1")
        return TensorType(logits.dtype, ())

    def body(self, logits: Value, labels: Value, *, ignore_index: int, label_smoothing: float) -> Value:
        valid = logical_not(equal(labels, constant(value=ignore_index, dtype=i64)))
        label = reshape(where(valid, labels, constant(value=0, dtype=i64)), shape=(*labels.shape, 1))
        centred = logits - max(logits)
        log_sum = log(sum(exp(centred)))
        loss = log_sum - take_along_axis(centred, label)
        if label_smoothing:
            loss = loss * (1.0 - label_smoothing) + (log_sum - mean(centred)) * label_smoothing
        counts = reshape(valid, shape=(-1,))
        # Not a product: a row that does not count may have an infinite loss.
        loss = where(counts, reshape(loss, shape=(-1,)), constant(value=0.0, dtype=logits.dtype))
        rows = sum(cast(counts, dtype=logits.dtype), keepdims=False)
        return sum(loss, keepdims=False) / maximum(rows, constant(value=1.0, dtype=logits.dtype))

    def torch(self, torch: Any, logits: Any, labels: Any, *, ignore_index: int, label_smoothing: float) -> Any:
        cross_entropy = torch.nn.functional.cross_entropy
        rows = logits.reshape(-1, logits.shape[-1])
        total = cross_entropy(
            rows, labels.reshape(-1), ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="sum"
        )
        return total / (labels != ignore_index).sum().clamp(min=1)

    def backward_reads(self, node: Node, layout: Layout) -> reads.Saved:
        """The labels, and log-probabilities of all classes."""
        return reads.Saved((node.value("labels"),), layout.bytes(node.value("logits").type))


cross_entropy = op(CrossEntropy)
