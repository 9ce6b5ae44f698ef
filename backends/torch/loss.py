"""The loss over a vocabulary without its logits: chunks of rows, with the gradient made on the way."""

from __future__ import annotations

from typing import Any

import torch

from ...ir import ops
from ...ir.backward_reads import Saved
from ...ir.errors import RuntimeInputError, check
from ...ir.graph import Node, Value
from ...ir.layout import Layout
from ...ir.op import Op
from ...ir.shard_rules import needs_all
from ...ir.types import TensorType
from ...passes.pattern import Rewrite
from .products import plain_product, product
from .tensors import autocast_dtype
from .untyped import library

CHUNK_ELEMENTS = 1 << 23
"""Logits that exist at one time: 32 MiB in float32, near what a cache holds."""
LEAST_ROWS, MOST_ROWS = 64, 512
"""Of a chunk: with fewer the products are slow, with more they are no faster."""


class LinearCrossEntropy(Op):
    """cross_entropy(linear(x, w, b), labels): x [..., C], w [V, C], labels [...] -> a scalar."""

    shard = needs_all

    def infer(
        self,
        x: Value,
        w: Value,
        labels: Value,
        b: Value | None = None,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> TensorType:
        check(labels.shape == x.shape[:-1], f"labels are {labels.type} but x is {x.type}")
        return TensorType(x.dtype, ())

    def body(
        self,
        x: Value,
        w: Value,
        labels: Value,
        b: Value | None = None,
        *,
        ignore_index: int,
        label_smoothing: float,
    ) -> Value:
        logits = ops.linear(x, w, b)
        return ops.cross_entropy(logits, labels, ignore_index=ignore_index, label_smoothing=label_smoothing)

    def torch(
        self, torch: Any, x: Any, w: Any, labels: Any, b: Any = None, *, ignore_index: int, label_smoothing: float
    ) -> Any:
        arguments = (x, w, labels, b, ignore_index, label_smoothing)
        return x.tracer.create_proxy("call_function", linear_cross_entropy, arguments, {})

    def backward_reads(self, node: Node, layout: Layout) -> Saved:
        """The gradients themselves, made with the loss."""
        x, w, b = node.value("x"), node.value("w"), node["b"]
        gradients = [x, *(v for v in (w, b) if w in layout.learns)]
        return Saved((), sum(layout.bytes(v.type) for v in gradients if v is not None))


FUSED = LinearCrossEntropy()


class LossOverVocabulary(Rewrite):
    """The LM head and the loss that alone reads its logits => one op that never holds all logits."""

    def before(
        self,
        x: Value,
        w: Value,
        labels: Value,
        b: Value | None = None,
        *,
        ignore_index: int,
        label_smoothing: float,
    ) -> Value:
        logits = ops.linear(x, w, b)
        return ops.cross_entropy(logits, labels, ignore_index=ignore_index, label_smoothing=label_smoothing)

    def after(
        self,
        x: Value,
        w: Value,
        labels: Value,
        b: Value | None = None,
        *,
        ignore_index: int,
        label_smoothing: float,
    ) -> Value:
        attributes = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
        return x.graph.add(FUSED, (x, w, labels, b), attributes)[0]


def linear_cross_entropy(
    x: torch.Tensor,
    w: torch.Tensor,
    labels: torch.Tensor,
    b: torch.Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Mean cross-entropy of x @ w.T + b over labels that count; under autocast the products use its dtype."""
    x = x.to(autocast_dtype(x) or x.dtype)
    wanted = torch.is_grad_enabled()
    learns = wanted and (w.requires_grad or (b is not None and b.requires_grad))
    return _chunked(x, w, labels, b, ignore_index, label_smoothing, wanted, learns)[0]


@library.library.custom_op("monograph::linear_cross_entropy", mutates_args=())
def _chunked(
    x: torch.Tensor,
    w: torch.Tensor,
    labels: torch.Tensor,
    b: torch.Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    wanted: bool,
    learns: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, gradients of x, w and b for a loss gradient of 1; empty ones when not `wanted`, or w does not learn).

    The gradient needs the same softmax as the loss, so both are made while a chunk of logits is in memory
    (Hsu et al. 2024, Liger Kernel). Rows whose label does not count cost nothing.
    """
    wide = torch.promote_types(w.dtype, torch.float32)
    flat = labels.reshape(-1)
    places = (flat != ignore_index).nonzero().squeeze(1)
    every = places.numel() == flat.numel()
    rows = x.reshape(-1, x.shape[-1])
    rows, flat = (rows, flat) if every else (rows[places], flat[places])
    grad_rows = torch.empty_like(rows) if wanted else None
    grad_w = _empty_sum(w, x, flat) if learns else w.new_empty(0)
    grad_b = torch.zeros_like(b) if learns and b is not None else w.new_empty(0)
    total = torch.zeros((), dtype=wide, device=x.device)
    count = max(flat.numel(), 1)
    weight, step = w.to(x.dtype), max(LEAST_ROWS, min(MOST_ROWS, CHUNK_ELEMENTS // w.shape[0]))
    for start in range(0, flat.numel(), step):
        part, label = rows[start : start + step], flat[start : start + step, None]
        # The last chunk may have any number of rows.
        multiply = product if len(part) == step else plain_product
        logits = multiply(part, weight).to(wide)
        if b is not None:
            logits += b
        loss, grad = _softmax_loss(logits, label, label_smoothing, count)
        total += loss
        if grad_rows is not None:
            grad = grad.to(x.dtype)
            grad_rows[start : start + step] = multiply(grad, weight.t())
            if learns:
                _add_product(grad_w, grad, part, start == 0)
            if learns and b is not None:
                grad_b += grad.sum(0)
        del logits, grad  # Else they stay while the next chunk is made.
    return (total / count).to(w.dtype), _spread(grad_rows, x, places, every), grad_w, grad_b


def _softmax_loss(
    logits: torch.Tensor, label: torch.Tensor, smoothing: float, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of the losses of all rows, gradient of that sum / count), the latter in the memory of `logits` [N,V].

    One pass less over the logits than by log-softmax and its gradient; label [N,1].
    """
    top, hit = logits.amax(1, keepdim=True), logits.gather(1, label)
    even = logits.mean(1, keepdim=True) if smoothing else hit
    if logits.device.type == "cpu":
        weights = torch.softmax(logits, 1, out=logits)
        norm = weights.amax(1, keepdim=True).reciprocal_()  # The largest is exp(0) / norm.
        weights.mul_(1 / count)
    else:
        weights = logits.sub_(top).exp_()
        norm = weights.sum(1, keepdim=True)
        weights.mul_((norm * count).reciprocal_())
    loss = (norm.log() + top - (1 - smoothing) * hit - smoothing * even).sum()
    grad = weights
    if smoothing:
        grad.sub_(smoothing / (grad.shape[1] * count))
    return loss, grad.scatter_add_(1, label, torch.full_like(hit, (smoothing - 1) / count))


def _empty_sum(w: torch.Tensor, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Where the gradient of w is summed up: zeros, unless the first chunk overwrites them anyway."""
    return torch.empty_like(w) if labels.numel() and w.dtype == x.dtype else torch.zeros_like(w)


def _add_product(into: torch.Tensor, grad: torch.Tensor, part: torch.Tensor, first: bool) -> None:
    if into.dtype != grad.dtype:
        into += grad.t() @ part
    elif first:
        torch.mm(grad.t(), part, out=into)
    else:
        into.addmm_(grad.t(), part)


def _spread(grad: torch.Tensor | None, x: torch.Tensor, places: torch.Tensor, every: bool) -> torch.Tensor:
    """Gradient rows back at their places in x."""
    if grad is None:
        return x.new_empty(0)
    if every:
        return grad.reshape(x.shape)
    full = x.new_zeros((x.numel() // x.shape[-1], x.shape[-1]))
    full[places] = grad
    return full.reshape(x.shape)


@_chunked.register_fake
def _(
    x: torch.Tensor, w: torch.Tensor, labels: torch.Tensor, b: torch.Tensor | None, ignore_index: int,
    label_smoothing: float, wanted: bool, learns: bool,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    grad_x = torch.empty_like(x) if wanted else x.new_empty(0)
    grad_w = torch.empty_like(w) if learns else w.new_empty(0)
    grad_b = torch.empty_like(b) if learns and b is not None else w.new_empty(0)
    return w.new_empty(()), grad_x, grad_w, grad_b


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.has_bias, ctx.learns = inputs[3] is not None, inputs[7]
    ctx.set_materialize_grads(False)  # Else the backward pass makes zeros as large as the weight, for nothing.
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, grad: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 8
    if torch.is_grad_enabled() and type(grad) is torch.Tensor:
        raise RuntimeInputError("the loss in chunks has no gradients of gradients: take them of logits")
    # In place: a copy would be as large as the weight. PyTorch refuses a second pass over tensors that were changed,
    # also by whoever holds the gradients, except through `.data`.
    one = type(grad) is torch.Tensor and grad.device.type == "cpu" and grad.item() == 1
    grad_x, grad_w, grad_b = (t.detach() if one else t.detach().mul_(grad) for t in ctx.saved_tensors)
    of_w, of_b = (grad_w, grad_b if ctx.has_bias else None) if ctx.learns else (None, None)
    return grad_x, of_w, None, of_b, None, None, None, None


_chunked.register_autograd(_backward, setup_context=_keep)
