"""Activations and the feed-forward block, plain and gated; dropout."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import backward_reads as reads
from .. import shard_rules
from ..errors import check, did_you_mean
from ..flow import Links
from ..graph import Node, Value
from ..op import Op, op
from ..ranges import Range
from ..shard_rules import Cut, Cuts, Stop, first_cut
from ..types import DimLike, TensorType
from .checks import floating, not_scalar, rank, same_dtype, typed
from .elementwise import abs, constant, elementwise_links, erf, exp, log, maximum, neg, sigmoid, tanh
from .linear import linear

if TYPE_CHECKING:
    from ..layout import Layout


def shrunk(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """Bounds of x times a share of 1 that goes to 0 for negative x: never below -1 for gelu and silu."""
    (x,) = (r for r in given if r is not None)
    return (Range(max(x.low, -1.0), max(x.high, 0.0), x.rows, x.columns),)


class Activation(Op):
    """An elementwise composite of one operand."""

    elementwise = True

    def infer(self, x: Value) -> TensorType:
        floating(x=x)
        return x.type

    ranges = shrunk


class Gelu(Op):
    """x * Phi(x), Phi the normal distribution function. (Hendrycks & Gimpel 2016)

    `tanh` uses the approximation 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    """

    elementwise = True
    wide = True
    ranges = shrunk
    backward_reads = reads.first

    def infer(self, x: Value, *, tanh: bool = False) -> TensorType:
        floating(x=x)
        return x.type

    def body(self, x: Value, *, tanh: bool) -> Value:
        if tanh:
            return x * (_tanh((x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)) + 1.0) * 0.5
        return x * (erf(x * math.sqrt(0.5)) + 1.0) * 0.5

    def torch(self, torch: Any, x: Any, *, tanh: bool) -> Any:
        return torch.nn.functional.gelu(x, approximate="tanh" if tanh else "none")

    def onnx(self, op: Any, x: Any, *, tanh: bool) -> Any:
        return op.Gelu(x, approximate="tanh" if tanh else "none")


_tanh = tanh


class Silu(Activation):
    """x * sigmoid(x). (Elfwing et al. 2017; Ramachandran et al. 2017 call it swish)"""

    backward_reads = reads.first

    def body(self, x: Value) -> Value:
        return x * sigmoid(x)

    def torch(self, torch: Any, x: Any) -> Any:
        return torch.nn.functional.silu(x)


class Relu(Activation):
    """max(x, 0). (Fukushima 1969; Nair & Hinton 2010)"""

    def ranges(self, node: Node, *given: Range | None) -> tuple[Range, ...]:
        (x,) = (r for r in given if r is not None)
        return (Range(max(x.low, 0.0), max(x.high, 0.0), x.rows, x.columns),)

    backward_reads = reads.output

    def body(self, x: Value) -> Value:
        return maximum(x, constant(value=0.0, dtype=x.dtype))

    def torch(self, torch: Any, x: Any) -> Any:
        return torch.relu(x)

    def onnx(self, op: Any, x: Any) -> Any:
        return op.Relu(x)


class Softplus(Activation):
    """log(1 + e**x), as max(x, 0) + log(1 + e**-|x|), which never overflows. (Dugas et al. 2000)"""

    sensitive = True
    backward_reads = reads.first

    def ranges(self, node: Node, *given: Range | None) -> tuple[Range, ...]:
        (x,) = (r for r in given if r is not None)
        return (Range(0.0, max(x.high, 0.0) + 1.0),)

    def body(self, x: Value) -> Value:
        return maximum(x, constant(value=0.0, dtype=x.dtype)) + log(exp(neg(abs(x))) + 1.0)

    def torch(self, torch: Any, x: Any) -> Any:
        # Above its threshold PyTorch gives x: at 40 that is right to the last digit of f64.
        return torch.nn.functional.softplus(x, threshold=40)

    def onnx(self, op: Any, x: Any) -> Any:
        return op.Softplus(x)


gelu, silu, relu, softplus = op(Gelu), op(Silu), op(Relu), op(Softplus)

ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "relu")


def _check_block(x: Value, weights: dict[str, Value], activation: str) -> None:
    known = f"expected one of {', '.join(ACTIVATIONS)}{did_you_mean(activation, ACTIVATIONS)}"
    check(activation in ACTIVATIONS, f"activation is {activation!r}, {known}")
    floating(x=x)
    not_scalar(x=x)
    rank(2, **weights)
    same_dtype(x.dtype, **weights)


def activate(x: Value, activation: str) -> Value:
    """Apply one of ACTIVATIONS by name. Raises OpError for another name."""
    check(activation in ACTIVATIONS, f"activation is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    if activation == "gelu":
        return gelu(x)
    if activation == "gelu_tanh":
        return gelu(x, tanh=True)
    return silu(x) if activation == "silu" else relu(x)


def activate_in_onnx(op: Any, x: Any, activation: str) -> Any:
    """The same in an ONNX lowering."""
    if activation == "silu":
        return op.Mul(x, op.Sigmoid(x))
    return (
        op.Relu(x) if activation == "relu" else op.Gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")
    )


class FeedForward(Op):
    """linear(act(linear(x, w_up, b_up)), w_down, b_down). (Vaswani et al. 2017)

    x [...,C], w_up [F,C], b_up [F], w_down [C,F], b_down [C] -> [...,C]. activation: gelu, silu or relu, the op that
    act is. tanh: gelu by its approximation. transposed: weights are stored the other way round, [C,F] and [F,C].
    """

    choices = {"activation": ACTIVATIONS}

    def infer(
        self,
        x: Value,
        w_up: Value,
        w_down: Value,
        b_up: Value | None = None,
        b_down: Value | None = None,
        *,
        activation: str,
        transposed: bool = False,
    ) -> TensorType:
        _check_block(x, {"w_up": w_up, "w_down": w_down}, activation)
        rows, hidden = w_up.shape if transposed else w_up.shape[::-1]
        back, columns = w_down.shape if transposed else w_down.shape[::-1]
        check(x.shape[-1] == rows, f"last axis of x is {x.shape[-1]} but w_up expects {rows}")
        check(hidden == back, f"w_up gives {hidden} channels but w_down expects {back}")
        typed(TensorType(x.dtype, (hidden,)), ", the channels of w_up", b_up=b_up)
        typed(TensorType(x.dtype, (columns,)), ", the channels of w_down", b_down=b_down)
        return TensorType(x.dtype, (*x.shape[:-1], columns))

    def body(
        self,
        x: Value,
        w_up: Value,
        w_down: Value,
        b_up: Value | None = None,
        b_down: Value | None = None,
        *,
        activation: str,
        transposed: bool,
    ) -> Value:
        hidden = activate(linear(x, w_up, b_up, transposed=transposed), activation)
        return linear(hidden, w_down, b_down, transposed=transposed)


class GatedFeedForward(Op):
    """linear(act(linear(x, w_gate, b_gate)) * linear(x, w_up, b_up), w_down, b_down): SwiGLU with silu. (Shazeer 2020)

    x [...,C], w_gate [F,C], w_up [F,C], w_down [C,F], b_gate [F], b_up [F], b_down [C] -> [...,C].
    activation: silu, gelu or relu, the op that act is. tanh: gelu by its approximation.
    """

    choices = {"activation": ACTIVATIONS}

    def infer(
        self,
        x: Value,
        w_gate: Value,
        w_up: Value,
        w_down: Value,
        b_gate: Value | None = None,
        b_up: Value | None = None,
        b_down: Value | None = None,
        *,
        activation: str,
    ) -> TensorType:
        _check_block(x, {"w_gate": w_gate, "w_up": w_up, "w_down": w_down}, activation)
        check(w_gate.type == w_up.type, f"w_gate is {w_gate.type} but w_up is {w_up.type}")
        check(x.shape[-1] == w_up.shape[1], f"last axis of x is {x.shape[-1]} but w_up expects {w_up.shape[1]}")
        hidden, columns = w_up.shape[0], w_down.shape[0]
        check(hidden == w_down.shape[1], f"w_up gives {hidden} channels but w_down expects {w_down.shape[1]}")
        typed(TensorType(x.dtype, (hidden,)), ", the channels of w_up", b_gate=b_gate, b_up=b_up)
        typed(TensorType(x.dtype, (columns,)), ", the channels of w_down", b_down=b_down)
        return TensorType(x.dtype, (*x.shape[:-1], columns))

    def body(
        self,
        x: Value,
        w_gate: Value,
        w_up: Value,
        w_down: Value,
        b_gate: Value | None = None,
        b_up: Value | None = None,
        b_down: Value | None = None,
        *,
        activation: str,
    ) -> Value:
        hidden = activate(linear(x, w_gate, b_gate), activation) * linear(x, w_up, b_up)
        return linear(hidden, w_down, b_down)


def _never(node: Node) -> Value | None:
    return node.value("x") if node.attributes["p"] == 0 else None


class Dropout(Op):
    """In training, zero a share `p` of the elements and scale the rest by 1/(1-p); else x. (Srivastava et al. 2014)

    The reference gives the evaluation-mode value, x.
    """

    random = True
    elementwise = True
    canonical = (_never,)

    def infer(self, x: Value, *, p: float) -> TensorType:
        floating(x=x)
        check(0.0 <= p < 1.0, f"p is {p}, expected 0 <= p < 1")
        return x.type

    def links(self, x: Value, *, p: float) -> Links:
        return elementwise_links(x)

    def flops(self, x: Value, *, p: float) -> DimLike:
        return 2 * x.type.elements

    def numpy(self, x: np.ndarray[Any, Any], *, p: float) -> Any:
        return x

    def torch(self, torch: Any, x: Any, *, p: float, training: Any) -> Any:
        return torch.nn.functional.dropout(x, p, training)

    def onnx(self, op: Any, x: Any, *, p: float) -> Any:
        return op.Identity(x)

    def view(
        self, node: Node, strides: reads.Strides, old: tuple[int, ...], new: tuple[int, ...]
    ) -> reads.Strides | None:
        return strides if node.attributes["p"] == 0 else None

    def backward_reads(self, node: Node, layout: Layout) -> reads.Saved:
        """The mask, scaled, in the width of x."""
        return reads.Saved((), layout.bytes(node.value("x").type))

    def shard(self, node: Node, known: Cuts) -> dict[Value, Cut]:
        if len(first_cut(node, known)[1].sections) > 1:
            raise Stop(f"{node} draws numbers for sections that lie apart")
        return shard_rules.elementwise(self, node, known)


feed_forward, gated_feed_forward, dropout = op(FeedForward), op(GatedFeedForward), op(Dropout)
