"""An activation and the linear layer after it as one step, which keeps for the backward pass only what goes in.

PyTorch keeps both the input of an activation and its output, the input of the linear layer. The output is cheap to
make again, and needed at the same moment as the slope, so both are made together. (Chen et al. 2016)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from ...ir import ops
from ...ir.backward_reads import Saved
from ...ir.graph import Node, Value
from ...ir.layout import Layout
from ...ir.op import Op
from ...ir.ops.feed_forward import ACTIVATIONS, activate
from ...ir.shard_rules import needs_all
from ...ir.types import TensorType
from ...passes.pattern import Rewrite
from .products import by_hand, linear, plain_product, product, transformed
from .tensors import as_given, autocast_dtype
from .untyped import applied

CHUNK_ELEMENTS = 1 << 17
"""Elements that one thread works on at a time on a CPU: what lies between the steps of a formula stays in its cache."""

_SLOPE, _BEND = 2 * (2 / torch.pi) ** 0.5, 2 * (2 / torch.pi) ** 0.5 * 0.044715
"""gelu_tanh(x) = x * sigmoid(_SLOPE * x + _BEND * x**3): a sigmoid costs a sixth of PyTorch's tanh on a CPU."""


class ActivatedLinear(Op):
    """linear(act(x) * up, w, b), without `up` linear(act(x), w, b): x and up [..., K], w [N, K] -> [..., N]."""

    autocast = True
    shard = needs_all

    def infer(
        self,
        x: Value,
        w: Value,
        up: Value | None = None,
        b: Value | None = None,
        *,
        activation: str,
        transposed: bool = False,
    ) -> TensorType:
        return TensorType(x.dtype, (*x.shape[:-1], w.shape[1] if transposed else w.shape[0]))

    def body(
        self,
        x: Value,
        w: Value,
        up: Value | None = None,
        b: Value | None = None,
        *,
        activation: str,
        transposed: bool,
    ) -> Value:
        y = activate(x, activation)
        return ops.linear(y if up is None else y * up, w, b, transposed=transposed)

    def torch(self, torch: Any, x: Any, w: Any, up: Any = None, b: Any = None, **attributes: Any) -> Any:
        return x.tracer.create_proxy("call_function", activated_linear, (x, w, up, b), attributes)

    def backward_reads(self, node: Node, layout: Layout) -> Saved:
        """What goes in: the activation is made again."""
        return Saved(tuple(v for v in (node["x"], node["w"], node["up"]) if v is not None))


ACTIVATED = ActivatedLinear()


class LinearAfterActivation(Rewrite):
    """An activation that only a linear layer reads, or its product with a second projection => one op."""

    choices = {"activation": ACTIVATIONS}
    before = ACTIVATED.body

    def when(self, **bound: Any) -> bool | str:
        x, up = bound["x"], bound["up"]
        return up is None or up.type == x.type or f"{up.type} is multiplied to {x.type}, expected its shape"

    def after(self, x: Value, w: Value, up: Value | None = None, b: Value | None = None, **attributes: Any) -> Value:
        return x.graph.add(ACTIVATED, (x, w, up, b), attributes)[0]


def activated_linear(
    x: torch.Tensor,
    w: torch.Tensor,
    up: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    *,
    activation: str,
    transposed: bool = False,
    static: bool = False,
) -> torch.Tensor:
    """As the op. static: products go to the library that products.py finds faster."""
    if not by_hand(x, w):
        y = value(x, activation)
        y = y if up is None else y * up
        return linear(y, w, b, transposed=transposed) if static else plain_product(y, w.t() if transposed else w, b)
    narrow = autocast_dtype(x)
    if narrow is not None:
        x, w = x.to(narrow), w.to(narrow)
        up, b = None if up is None else up.to(narrow), None if b is None else b.to(narrow)
    return applied(_ActivatedLinear, x, w, up, b, activation, transposed, product if static else plain_product)


class _ActivatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> torch.Tensor:
        x, w, up, b, activation, transposed, multiply = given
        ctx.save_for_backward(x, w, up)
        ctx.rest = activation, transposed, multiply
        return multiply(activated(x, up, activation), w.t() if transposed else w, b)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,), (x, w, up), (activation, transposed, multiply) = grads, ctx.saved_tensors, ctx.rest
        wants_x, wants_w, wants_up, wants_b = ctx.needs_input_grad[:4]
        rows, of_y, of_w = grad.reshape(-1, grad.shape[-1]), None, None
        if torch.is_grad_enabled():  # The backward pass is itself differentiated.
            multiply = plain_product
        with as_given(x):
            if wants_x or wants_up:
                of_y = multiply(rows, w if transposed else w.t()).reshape(x.shape)
            y, of_x, of_up = gradients(of_y, x, up, activation)
            if wants_w:
                y = y.reshape(-1, y.shape[-1])
                of_w = y.t() @ rows if transposed else rows.t() @ y
        of_x, of_up = of_x if wants_x else None, of_up if wants_up else None
        return of_x, of_w, of_up, rows.sum(0) if wants_b else None, None, None, None


def activated(x: torch.Tensor, up: torch.Tensor | None, activation: str) -> torch.Tensor:
    """act(x) * up."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for x_, up_, y_ in _chunks(x, up, y):
        _activate(x_, activation, y_)
        if up_ is not None:
            y_.mul_(up_)
    return y


def gradients(
    of_y: torch.Tensor | None, x: torch.Tensor, up: torch.Tensor | None, activation: str
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """(y, gradient of x, gradient of up) of y = act(x) * up; the second in the memory of `of_y`."""
    if of_y is None:
        return activated(x, up, activation), None, None
    if torch.is_grad_enabled():
        return _differentiable(of_y, x, up, activation)
    if transformed(of_y):
        return _in_ops(of_y, x, up, activation)
    y = torch.empty_like(of_y)
    of_up = None if up is None else torch.empty_like(of_y)
    for grad, x_, up_, y_, of_up_ in _chunks(of_y, x, up, y, of_up):
        gate = _activate(x_, activation, y_)
        if up_ is not None:
            torch.mul(grad, y_, out=of_up_)
            y_.mul_(up_)
            grad.mul_(up_)
        _slope(grad, x_, activation, gate)
    return y, of_y, of_up


def _differentiable(
    of_y: torch.Tensor, x: torch.Tensor, up: torch.Tensor | None, activation: str
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    # Views of their own: one operand may have been made from the other, and that way is not of this step.
    x, up = x.view_as(x), None if up is None else up.view_as(up)
    y = value(x, activation) if up is None else value(x, activation) * up
    learning = [t for t in (x, up) if t is not None and t.requires_grad]
    found = dict(zip(map(id, learning), torch.autograd.grad(y, learning, of_y, create_graph=True), strict=True))
    return y, found.get(id(x)), found.get(id(up))


def _in_ops(
    of_y: torch.Tensor, x: torch.Tensor, up: torch.Tensor | None, activation: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The same by ops that torch.func knows, none of which writes into what it is given."""
    a = value(x, activation)
    if up is None:
        return a, _BACKWARD[activation](of_y, x), None
    return a * up, _BACKWARD[activation](of_y * up, x), of_y * a


_BACKWARD: dict[str, Callable[..., torch.Tensor]] = {
    "gelu": torch.ops.aten.gelu_backward,
    "gelu_tanh": functools.partial(torch.ops.aten.gelu_backward, approximate="tanh"),
    "silu": torch.ops.aten.silu_backward,
    "relu": functools.partial(torch.ops.aten.threshold_backward, threshold=0),
}


def _chunks(*tensors: torch.Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Flat parts of tensors of one shape, at the same places in each; on other devices than the CPU they stay whole.

    Those that are written must be contiguous.
    """
    first = next(t for t in tensors if t is not None)
    if first.device.type != "cpu":
        yield tensors
        return
    flat = [None if t is None else t.reshape(-1) for t in tensors]
    step = CHUNK_ELEMENTS * torch.get_num_threads()
    for start in range(0, first.numel(), step):
        yield tuple(None if t is None else t[start : start + step] for t in flat)


def value(x: torch.Tensor, activation: str) -> torch.Tensor:
    """act(x), as PyTorch differentiates and compiles it."""
    if activation == "relu":
        return torch.relu(x)
    if activation == "silu":
        return functional.silu(x)
    if activation == "gelu_tanh" and torch.compiler.is_compiling() and _wide_on_cpu(x):
        return x * torch.sigmoid(x * (_BEND * x * x + _SLOPE))  # Here too, and the compiler fuses it.
    return functional.gelu(x, approximate=_APPROXIMATE[activation])


_APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}


def _activate(x: torch.Tensor, activation: str, y: torch.Tensor) -> torch.Tensor | None:
    """act(x) into y; gives the sigmoid that gelu_tanh was made from, if it was."""
    if activation == "gelu_tanh" and _wide_on_cpu(x):
        gate = torch.addcmul(x.new_tensor(_SLOPE), x, x, value=_BEND).mul_(x).sigmoid_()
        torch.mul(gate, x, out=y)
        return gate
    if activation == "relu":
        torch.clamp_min(x, 0, out=y)
    elif activation == "silu":
        torch.ops.aten.silu.out(x, out=y)
    else:
        torch.ops.aten.gelu.out(x, approximate=_APPROXIMATE[activation], out=y)
    return None


def _slope(grad: torch.Tensor, x: torch.Tensor, activation: str, gate: torch.Tensor | None) -> None:
    """Gradient of act(x) to that of x, in place. gate: what `_activate` gave."""
    aten = torch.ops.aten
    if gate is not None:
        bend = torch.addcmul(x.new_tensor(_SLOPE), x, x, value=3 * _BEND)
        inner = aten.sigmoid_backward(grad * x, gate).mul_(bend)
        torch.addcmul(inner, grad, gate, out=grad)
    elif activation == "relu":
        aten.threshold_backward.grad_input(grad, x, 0, grad_input=grad)
    elif activation == "silu":
        aten.silu_backward.grad_input(grad, x, grad_input=grad)
    else:
        aten.gelu_backward.grad_input(grad, x, approximate=_APPROXIMATE[activation], grad_input=grad)


def _wide_on_cpu(x: torch.Tensor) -> bool:
    wide = x.dtype in (torch.float32, torch.float64)
    return wide and x.device.type == "cpu" and not torch.compiler.is_exporting()
