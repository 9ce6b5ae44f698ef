"""Normalisation layers, alone and fused with the residual sum before them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import backward_reads as reads
from .. import shard_rules
from ..errors import check
from ..graph import Node, Value
from ..op import Op, op
from ..ranges import Range, length_of
from ..types import TensorType
from .checks import floating, not_scalar, typed
from .elementwise import rsqrt
from .reduce import mean

if TYPE_CHECKING:
    from ..layout import Layout


def _check_norm(x: Value, eps: float, **weights: Value | None) -> None:
    floating(x=x)
    not_scalar(x=x)
    check(eps >= 0, f"eps is {eps}, expected at least 0")
    typed(TensorType(x.dtype, x.shape[-1:]), ", the last axis of x", **weights)


def normed(x: Value, w: Range | None, b: Range | None = None) -> Range:
    """Bounds of rows of length sqrt(C) at most, times w, and b."""
    most = length_of(x.shape, -1, 1.0)
    size = 1.0 if w is None else w.most
    shift = Range(0.0, 0.0, 0.0) if b is None else b
    return Range(shift.low - most * size, shift.high + most * size, most * size + shift.rows)


class RMSNorm(Op):
    """y = x / sqrt(mean(x**2) + eps) * w, over the last axis. (Zhang & Sennrich 2019)

    x [...,C], w [C] -> [...,C].
    """

    wide, scale_free = True, True
    shard = shard_rules.norm

    def ranges(self, node: Node, *given: Range | None) -> tuple[Range, ...]:
        return (normed(node.value("x"), given[1]),)

    def infer(self, x: Value, w: Value, *, eps: float = 1e-6) -> TensorType:
        _check_norm(x, eps, w=w)
        return x.type

    def body(self, x: Value, w: Value, *, eps: float) -> Value:
        return x * rsqrt(mean(x * x) + eps) * w

    def torch(self, torch: Any, x: Any, w: Any, *, eps: float) -> Any:
        return torch.nn.functional.rms_norm(x, w.shape, w, eps)

    def onnx(self, op: Any, x: Any, w: Any, *, eps: float) -> Any:
        return op.RMSNormalization(x, w, axis=-1, epsilon=eps)

    def backward_reads(self, node: Node, layout: Layout) -> reads.Saved:
        """x and a number for each row. In narrow types, without a kernel, x and its square in float32 and two of the
        numbers; for the gradient of w also x scaled, in both widths.
        """
        x, w = node.value("x"), node.value("w")
        rows = layout.rows(x) * reads.width_of(x)
        if x.dtype.bits >= 32:
            return reads.Saved((x,), rows)
        wide = layout.size(x.type.elements) * reads.width_of(x)
        return reads.Saved((), 2 * rows + wide + (wide if w in layout.learns else 0))


class LayerNorm(Op):
    """y = (x - mean(x)) / sqrt(var(x) + eps) * w + b, over the last axis. (Ba et al. 2016)

    x [...,C], w [C], b [C] -> [...,C].
    """

    wide, scale_free = True, True
    shard = shard_rules.norm

    def ranges(self, node: Node, *given: Range | None) -> tuple[Range, ...]:
        return (normed(node.value("x"), given[1], given[2]),)

    def infer(self, x: Value, w: Value, b: Value | None = None, *, eps: float = 1e-5) -> TensorType:
        _check_norm(x, eps, w=w, b=b)
        return x.type

    def body(self, x: Value, w: Value, b: Value | None = None, *, eps: float) -> Value:
        centred = x - mean(x)
        y = centred * rsqrt(mean(centred * centred) + eps) * w
        return y if b is None else y + b

    def torch(self, torch: Any, x: Any, w: Any, b: Any = None, *, eps: float) -> Any:
        return torch.nn.functional.layer_norm(x, w.shape, w, b, eps)

    def onnx(self, op: Any, x: Any, w: Any, b: Any = None, *, eps: float) -> Any:
        return op.LayerNormalization(x, w, *([] if b is None else [b]), axis=-1, epsilon=eps)

    def backward_reads(self, node: Node, layout: Layout) -> reads.Saved:
        x = node.value("x")
        return reads.Saved((x,), 2 * layout.rows(x) * reads.width_of(x))


rms_norm, layer_norm = op(RMSNorm), op(LayerNorm)


class AddRMSNorm(Op):
    """(rms_norm(x + r, w), x + r): the sum stays an output because the residual stream needs it.

    (Zhang & Sennrich 2019) x [...,C], r [...,C], w [C] -> [...,C] twice. eps: added to the mean of squares.
    """

    total, scale_free = 1, True

    def infer(self, x: Value, r: Value, w: Value, *, eps: float = 1e-6) -> tuple[TensorType, TensorType]:
        check(x.type == r.type, f"x is {x.type} but r is {r.type}: the fused op does not broadcast")
        _check_norm(x, eps, w=w)
        return x.type, x.type

    def body(self, x: Value, r: Value, w: Value, *, eps: float) -> tuple[Value, Value]:
        s = x + r
        return rms_norm(s, w, eps=eps), s


class AddLayerNorm(Op):
    """(layer_norm(x + r, w, b), x + r): the sum stays an output because the residual stream needs it. (Ba et al. 2016)

    x [...,C], r [...,C], w [C], b [C] -> [...,C] twice. eps: added to the variance.
    """

    total, scale_free = 1, True

    def infer(
        self, x: Value, r: Value, w: Value, b: Value | None = None, *, eps: float = 1e-5
    ) -> tuple[TensorType, TensorType]:
        check(x.type == r.type, f"x is {x.type} but r is {r.type}: the fused op does not broadcast")
        _check_norm(x, eps, w=w, b=b)
        return x.type, x.type

    def body(self, x: Value, r: Value, w: Value, b: Value | None = None, *, eps: float) -> tuple[Value, Value]:
        s = x + r
        return layer_norm(s, w, b, eps=eps), s


add_rms_norm, add_layer_norm = op(AddRMSNorm), op(AddLayerNorm)
