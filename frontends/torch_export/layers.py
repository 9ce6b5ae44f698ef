"""ATen ops that are layers: products, norms, attention, convolutions, pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from ...ir import Value, ops
from ...ir.types import DimLike, Shape, bool_, broadcast, product
from ...ir.value import ancestors, leaves
from .call import Call, Table, only
from .errors import UnknownFormError
from .reductions import over


def _linear(c: Call, x: Value, w: Value, b: Value | None = None) -> Value:
    if w.rank == 2 and x.rank >= 1:
        return ops.linear(x, w, b)
    y = _product(c, x, w if w.rank == 1 else ops.transpose(w, permutation=(1, 0)))
    return y if b is None else y + b


def _product(c: Call, x: Value, y: Value) -> Value:
    """matmul, mm, bmm, mv, dot: a vector is a row on the left and a column on the right."""
    first = c.reshaped(x, (1, *x.shape)) if x.rank == 1 else x
    second = c.reshaped(y, (*y.shape, 1)) if y.rank == 1 else y
    if second.is_param and second.rank == 2:
        return c.reshaped(ops.linear(first, second, transposed=True), c.shape)
    return c.reshaped(ops.matmul(first, second), c.shape)


def _added_product(c: Call, b: Value, x: Value, y: Value, beta: float = 1, alpha: float = 1) -> Value:
    """beta * b + alpha * x @ y; where y is a parameter a linear layer whose weight lies the other way round."""
    if (alpha, beta) == (1, 1) and y.is_param and y.rank == 2 and b.shape == y.shape[1:]:
        return ops.linear(x, y, b, transposed=True)
    found = ops.matmul(x, y)
    found = found if alpha == 1 else found * float(alpha)
    return found + (b if beta == 1 else b * float(beta))


def _summed_products(c: Call, b: Value, x: Value, y: Value, beta: float = 1, alpha: float = 1) -> Value:
    """addbmm: beta * b + alpha * the sum of all x[i] @ y[i]."""
    found = over(c, ops.sum, ops.matmul(x, y), [0], False)
    return (b if beta == 1 else b * float(beta)) + (found if alpha == 1 else found * float(alpha))


def _flat(c: Call, x: Value, axes: int) -> Value:
    """x with its last axes as one."""
    return c.reshaped(x, (*x.shape[: x.rank - axes], product(x.shape[x.rank - axes :])))


def _layer_norm(
    c: Call, x: Value, shape: list[Any], w: Value | None = None, b: Value | None = None, eps: float = 1e-5, *rest: Any
) -> Value:
    rows = _flat(c, x, len(shape))
    weight = _ones(c, rows) if w is None else _flat(c, w, len(shape))
    bias = None if b is None else _flat(c, b, len(shape))
    return c.reshaped(ops.layer_norm(rows, weight, bias, eps=eps), x.shape)


def _native_layer_norm(c: Call, x: Value, shape: list[Any], *rest: Any) -> Any:
    return _layer_norm(c, x, shape, *rest), None, None


def _rms_norm(c: Call, x: Value, shape: list[Any], w: Value | None = None, eps: float | None = None) -> Value:
    rows = _flat(c, x, len(shape))
    weight = _ones(c, rows) if w is None else _flat(c, w, len(shape))
    smallest = 2.0 ** {64: -52, 32: -23, 16: -10}[x.dtype.bits] if eps is None else eps
    return c.reshaped(ops.rms_norm(rows, weight, eps=smallest), x.shape)


def _ones(c: Call, x: Value) -> Value:
    channels = x.shape[-1]
    if not isinstance(channels, int):
        raise UnknownFormError(f"a norm over {channels} channels, which is no number")
    return ops.constant(value=(1.0,) * channels, dtype=x.dtype)


def _group_norm(
    c: Call, x: Value, groups: int, w: Value | None = None, b: Value | None = None, eps: float = 1e-5, *rest: Any
) -> Value:
    channels = x.shape[1]
    apart = ops.reshape(x, shape=(x.shape[0], groups, -1))
    centred = apart - ops.mean(apart)
    y = ops.reshape(centred * ops.rsqrt(ops.mean(centred * centred) + eps), shape=x.shape)
    return _by_channel(c, y, channels, w, b)


def _by_channel(c: Call, x: Value, channels: DimLike, w: Value | None, b: Value | None) -> Value:
    """x [B, C, ...] * w + b, of each channel."""
    shape = (channels, *(1,) * (x.rank - 2))
    x = x if w is None else x * c.reshaped(w, shape)
    return x if b is None else x + c.reshaped(b, shape)


def _batch_norm(
    c: Call,
    x: Value,
    w: Value | None,
    b: Value | None,
    mean: Value | None,
    variance: Value | None,
    training: bool,
    *rest: Any,
) -> Value:
    if training or mean is None or variance is None:
        raise UnknownFormError("batch_norm in training mode: load the module in evaluation mode, module.eval()")
    eps: float = rest[1]
    channels = x.shape[1]
    shape = (channels, *(1,) * (x.rank - 2))
    y = (x - c.reshaped(mean, shape)) * c.reshaped(ops.rsqrt(variance + eps), shape)
    return _by_channel(c, y, channels, w, b)


def _evaluated(
    c: Call, x: Value, w: Value | None, b: Value | None, mean: Value, variance: Value, momentum: float, eps: float
) -> Any:
    return _batch_norm(c, x, w, b, mean, variance, False, momentum, eps), None, None


def _instance_norm(
    c: Call, x: Value, w: Value | None, b: Value | None, training: bool, momentum: float, eps: float
) -> Any:
    """Statistics of this batch, and none that are kept: over all axes but the channels."""
    axes = [a for a in range(x.rank) if a != 1]
    centred = x - over(c, ops.mean, x, axes, True)
    y = centred * ops.rsqrt(over(c, ops.mean, centred * centred, axes, True) + eps)
    return _by_channel(c, y, x.shape[1], w, b), None, None


def _native_group_norm(
    c: Call, x: Value, w: Value | None, b: Value | None, rows: Any, channels: Any, size: Any, groups: int, eps: float
) -> Any:
    return _group_norm(c, x, groups, w, b, eps), None, None


# -- attention -------------------------------------------------------------------------------------------------------


def _attention(
    c: Call,
    q: Value,
    k: Value,
    v: Value,
    mask: Value | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
    grouped: bool = False,
) -> Value:
    """[..., heads, tokens, channels] of PyTorch; its causal mask is aligned at the first query and the first key."""
    q4, k4, v4 = (_four(c, x) for x in (q, k, v))
    batch = broadcast(q4.shape[:1], k4.shape[:1], v4.shape[:1])
    if batch is None:
        raise UnknownFormError(f"the batches of q {q.type}, k {k.type} and v {v.type} differ")
    q4, k4, v4 = (c.expanded(x, (*batch, *x.shape[1:])) for x in (q4, k4, v4))
    q4, k4, v4 = (ops.transpose(x, permutation=(0, 2, 1, 3)) for x in (q4, k4, v4))
    full: Shape = (*batch, q4.shape[2], q4.shape[1], k4.shape[1])
    given = None if mask is None else _mask(c, mask, q.rank, full)
    square = q4.shape[1] == k4.shape[1]
    if causal and not square:
        row = ops.reshape(ops.iota(start=0, length=q4.shape[1]), shape=(q4.shape[1], 1))
        given = ops.less_equal(ops.iota(start=0, length=k4.shape[1]), row)
    bias, keep = (None, given) if given is None or given.dtype == bool_ else (given, None)
    if bias is not None and _may_be_infinite(bias):  # A row of -inf alone gives zeros, as one without a key does.
        keep = ops.logical_not(ops.equal(bias, c.value(-math.inf, bias.dtype)))
    attributes: dict[str, Any] = {"causal": causal and square, "scale": scale}
    if dropout > 0:
        y = _attention_with_dropout(c, (q4, k4, v4), bias, keep, dropout, attributes)
    else:
        y = ops.attention(q4, k4, v4, bias, keep, **attributes)
    return c.reshaped(ops.transpose(y, permutation=(0, 2, 1, 3)), c.shape)


def _four(c: Call, x: Value) -> Value:
    """[batch, heads, tokens, channels], of fewer or more axes before the last three."""
    if x.rank < 3:
        return c.reshaped(x, (1, 1, *x.shape))
    if x.rank == 3:
        return c.reshaped(x, (x.shape[0], 1, *x.shape[1:]))
    return c.reshaped(x, (product(x.shape[:-3]), *x.shape[-3:]))


def _mask(c: Call, mask: Value, rank: int, full: Shape) -> Value:
    """A mask of PyTorch as it broadcasts to [batch, heads, queries, keys]."""
    if rank == 3 and mask.rank == 3:
        mask = c.reshaped(mask, (mask.shape[0], 1, *mask.shape[1:]))
    if mask.rank > 4:
        raise UnknownFormError(f"a mask {mask.type} over several batch axes")
    if broadcast(mask.shape, full) != full:
        raise UnknownFormError(f"a mask {mask.type} for scores [{','.join(map(str, full))}]")
    return mask


def _may_be_infinite(bias: Value) -> bool:
    """Whether -inf, or what comes from elsewhere, is among what a bias is made of."""
    if not {v for v in leaves(bias) if v.dtype.is_float} and bias.producer is not None:
        numbers = [n.attributes["value"] for n in ancestors(bias) if n.op.constant]
        return any(bool(np.isinf(np.asarray(x, np.float64)).any()) for x in numbers)
    return True


def _attention_with_dropout(
    c: Call,
    packed: tuple[Value, Value, Value],
    bias: Value | None,
    keep: Value | None,
    p: float,
    attributes: dict[str, Any],
) -> Value:
    """In parts, because weights that are dropped have no place in the op."""
    q, k, v = packed
    rows, keys, heads, shared = q.shape[1], k.shape[1], q.shape[2], k.shape[2]
    if heads != shared:
        raise UnknownFormError(f"dropout of attention weights where {heads} heads share {shared} of keys")
    width = q.shape[-1]
    scale: Any = attributes["scale"]
    if scale is None:
        only(isinstance(width, int), True, f"whether {width} channels are a number")
        scale = float(str(width)) ** -0.5
    scores = ops.matmul(ops.transpose(q, permutation=(0, 2, 1, 3)) * scale, ops.transpose(k, permutation=(0, 2, 3, 1)))
    scores = scores if bias is None else scores + bias
    if attributes["causal"]:
        row = ops.reshape(ops.iota(start=0, length=rows), shape=(rows, 1))
        seen = ops.less_equal(ops.iota(start=0, length=keys), row)
        keep = seen if keep is None else keep & seen
    scores = scores if keep is None else ops.where(keep, scores, c.value(q.dtype.lowest, q.dtype))
    weights = ops.softmax(scores)
    weights = weights if keep is None else ops.where(keep, weights, c.value(0, q.dtype))
    y = ops.matmul(ops.dropout(weights, p=p), ops.transpose(v, permutation=(0, 2, 1, 3)))
    return ops.transpose(y, permutation=(0, 2, 1, 3))


# -- convolutions and pooling ----------------------------------------------------------------------------------------


def each_axis(value: Any, axes: int) -> tuple[int, ...]:
    """An argument of a layer over axes, for each of them."""
    given = list(cast("list[int]", value)) if isinstance(value, (list, tuple)) else [cast("int", value)]
    return tuple(given * axes if len(given) == 1 else given)


def convolution(
    c: Call,
    x: Value,
    w: Value,
    b: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    axes = w.rank - 2
    if axes not in (1, 2):
        raise UnknownFormError(f"a convolution over {axes} axes")
    steps, spread = each_axis(stride, axes), each_axis(dilation, axes)
    batched = x if x.rank == w.rank else c.reshaped(x, (1, *x.shape))
    if padding == "same":
        taps = [int(d) * (int(str(n)) - 1) for d, n in zip(spread, w.shape[2:], strict=True)]
        around = tuple((n // 2, n - n // 2) for n in taps)
        batched, padding = ops.pad(batched, widths=((0, 0), (0, 0), *around)), 0
    width = each_axis(0 if padding == "valid" else padding, axes)
    function = ops.conv1d if axes == 1 else ops.conv2d
    y = function(batched, w, b, stride=steps, padding=width, dilation=spread, groups=groups)
    return c.reshaped(y, c.shape) if x.rank != w.rank else y


def _windows(c: Call, x: Value, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[Value]:
    """For each place in a kernel, the elements that lie there, of all windows."""
    axes = len(kernel)
    found = [x]
    for i in range(axes):
        at = x.rank - axes + i
        count = c.shape[at]
        found = [
            ops.gather(v, ops.iota(start=0, length=count) * stride[i] + k * dilation[i], axis=at)
            for v in found
            for k in range(kernel[i])
        ]
    return found


def _around(x: Value, padding: Sequence[int], stride: Sequence[int], ceil_mode: bool, number: float) -> Value:
    only(ceil_mode, False, "ceil_mode")
    widths = ((0, 0),) * (x.rank - len(padding)) + tuple((p, p) for p in padding)
    return ops.pad(x, widths=widths, value=number) if any(padding) else x


def _max_pool(axes: int) -> Callable[..., Any]:
    def handler(
        c: Call, x: Value, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> Any:
        size = each_axis(kernel, axes)
        steps = each_axis(stride, axes) if stride else size
        wide = _around(x, each_axis(padding, axes), steps, ceil_mode, x.dtype.lowest)
        best, *others = _windows(c, wide, size, steps, each_axis(dilation, axes))
        for other in others:  # The gradient goes to the first of several that are equal.
            best = ops.where(other > best, other, best)
        return (best, None) if len(c.types) > 1 else best

    return handler


def average_pool(axes: int) -> Callable[..., Value]:
    def handler(
        c: Call,
        x: Value,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor: int | None = None,
    ) -> Value:
        size, width = each_axis(kernel, axes), each_axis(padding, axes)
        if any(width):
            only(count_include_pad, True, "count_include_pad")
        steps = each_axis(stride, axes) if stride else size
        total, *others = _windows(c, _around(x, width, steps, ceil_mode, 0.0), size, steps, (1,) * axes)
        for other in others:
            total = total + other
        return total * (1.0 / (divisor or len(others) + 1))

    return handler


def to_size(axes: int) -> Callable[..., Value]:
    """adaptive_avg_pool: means of parts of one size."""

    def handler(c: Call, x: Value, size: Any) -> Value:
        new = c.shape[-axes:]
        apart: list[DimLike] = list(x.shape[:-axes])
        for old, parts in zip(x.shape[-axes:], new, strict=True):
            whole = isinstance(old, int) and isinstance(parts, int) and old % parts == 0
            if not whole and parts != 1:
                raise UnknownFormError(f"adaptive pooling of {old} elements to {parts}")
            apart += [parts, old if parts == 1 else int(str(old)) // int(str(parts))]
        y = ops.reshape(x, shape=tuple(apart))
        return c.reshaped(over(c, ops.mean, y, [x.rank - axes + 2 * i + 1 for i in range(axes)], False), c.shape)

    return handler


def _cosine(c: Call, x: Value, y: Value, dim: int = 1, eps: float = 1e-8) -> Value:
    def length(v: Value) -> Value:
        return ops.maximum(ops.sqrt(ops.sum(v * v, axis=dim)), c.value(eps, v.dtype))

    return ops.sum((x / length(x)) * (y / length(y)), axis=dim, keepdims=False)


LAYERS: Table = {
    "aten.linear.default": _linear,
    **dict.fromkeys(
        ("aten.matmul.default", "aten.mm.default", "aten.bmm.default", "aten.mv.default", "aten.dot.default"), _product
    ),
    "aten.addmm.default": _added_product,
    "aten.baddbmm.default": _added_product,
    "aten.addbmm.default": _summed_products,
    "aten.layer_norm.default": _layer_norm,
    "aten.native_layer_norm.default": _native_layer_norm,
    "aten.rms_norm.default": _rms_norm,
    "aten.group_norm.default": _group_norm,
    "aten.native_group_norm.default": _native_group_norm,
    "aten.batch_norm.default": _batch_norm,
    "aten._native_batch_norm_legit_no_training.default": _evaluated,
    "aten._native_batch_norm_legit.no_stats": _instance_norm,
    "aten.scaled_dot_product_attention.default": _attention,
    **dict.fromkeys(
        ("aten.conv1d.default", "aten.conv2d.default", "aten.conv1d.padding", "aten.conv2d.padding"), convolution
    ),
    "aten.max_pool1d.default": _max_pool(1),
    "aten.max_pool2d.default": _max_pool(2),
    "aten.max_pool2d_with_indices.default": _max_pool(2),
    "aten.cosine_similarity.default": _cosine,
}
"""Handlers of the ops of this file."""
