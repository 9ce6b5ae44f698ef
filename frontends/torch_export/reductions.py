"""ATen ops that reduce axes, softmax, running sums, losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...ir import Value, ops
from ...ir.types import bool_, i32, i64
from .call import Call, Result, Table, axes_of, count_of, only
from .errors import UnknownFormError

Reduction = Callable[..., Value]


def over(c: Call, function: Reduction, x: Value, dims: Any, keepdim: bool) -> Value:
    """One axis after the other, from the last to the first."""
    for axis in reversed(axes_of(dims, x.rank)):
        x = function(x, axis=axis, keepdims=keepdim)
    return x


def _sum(c: Call, x: Value, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    return over(c, ops.sum, c.cast(x, c.dtype), dims, keepdim)


def _mean(c: Call, x: Value, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    return over(c, ops.mean, c.cast(x, c.dtype), dims, keepdim)


def _mean_of_all(c: Call, x: Value, dtype: Any = None) -> Value:
    return _mean(c, x)


def _sum_of_all(c: Call, x: Value, dtype: Any = None) -> Value:
    return _sum(c, x)


def _extreme(function: Reduction) -> Callable[..., Value]:
    """amax, amin, and max and min of everything."""

    def handler(c: Call, x: Value, dims: Any = None, keepdim: bool = False) -> Value:
        return over(c, function, x, dims, keepdim)

    return handler


def _extreme_with_place(function: Reduction, sign: int) -> Callable[..., Result]:
    def handler(c: Call, x: Value, dim: int, keepdim: bool = False) -> Result:
        place = ops.argmax(x if sign > 0 else ops.neg(x), axis=dim, keepdims=True)
        # Taken from its place, so that all of the gradient goes there.
        value = ops.take_along_axis(x, place, axis=dim)
        return tuple(c.reshaped(v, t.shape) for v, t in zip((value, place), c.types, strict=True))

    return handler


def _place(sign: int) -> Callable[..., Value]:
    """argmax, argmin."""

    def handler(c: Call, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
        signed = x if sign > 0 else ops.neg(x)
        if dim is None:
            return c.reshaped(ops.argmax(ops.reshape(signed, shape=(-1,)), axis=0, keepdims=False), c.shape)
        return ops.argmax(signed, axis=dim, keepdims=keepdim)

    return handler


def _any(c: Call, x: Value, dims: Any = None, keepdim: bool = False) -> Value:
    return over(c, ops.any, c.cast(x, bool_), dims, keepdim)


def _every(c: Call, x: Value, dims: Any = None, keepdim: bool = False) -> Value:
    return ops.logical_not(over(c, ops.any, ops.logical_not(c.cast(x, bool_)), dims, keepdim))


def _variance(c: Call, x: Value, dims: Any = None, correction: float | None = 1, keepdim: bool = False) -> Value:
    axes = axes_of(dims, x.rank)
    centred = x - over(c, ops.mean, x, axes, True)
    total = over(c, ops.sum, centred * centred, axes, keepdim)
    count = count_of(x.shape, axes)
    less = 1 if correction is None else correction
    if isinstance(count, int):
        return total * (1.0 / (count - less)) if count > less else total / c.value(0, x.dtype)
    return total / (c.value(count, x.dtype) - float(less))


def _deviation(c: Call, x: Value, dims: Any = None, correction: float | None = 1, keepdim: bool = False) -> Value:
    return _root(c, _variance(c, x, dims, correction, keepdim))


def _variance_and_mean(
    c: Call, x: Value, dims: Any = None, correction: float | None = 1, keepdim: bool = False
) -> Result:
    return _variance(c, x, dims, correction, keepdim), over(c, ops.mean, x, dims, keepdim)


def _softmax(c: Call, x: Value, dim: int, dtype: Any = None) -> Value:
    return ops.softmax(c.cast(x, c.dtype), axis=dim) if x.rank else c.value(1, c.dtype)


def _log_softmax(c: Call, x: Value, dim: int, dtype: Any = None) -> Value:
    centred = _centred(c, c.cast(x, c.dtype), dim)
    return centred - ops.log(ops.sum(ops.exp(centred), axis=dim))


def _centred(c: Call, x: Value, dim: int) -> Value:
    """x less its largest along an axis, which is a constant to the gradient: that is the same either way."""
    return x - c.detached(ops.max(x, axis=dim))


def _log_sum_exp(c: Call, x: Value, dims: Any, keepdim: bool = False) -> Value:
    largest = c.detached(over(c, ops.max, x, dims, True))
    total = over(c, ops.sum, ops.exp(x - largest), dims, keepdim)
    return ops.log(total) + c.reshaped(largest, total.shape)


def _running(c: Call, x: Value, dim: int, dtype: Any = None) -> Value:
    wide = c.cast(x, i64) if c.dtype == i32 else c.cast(x, c.dtype)
    return c.cast(ops.cumsum(wide, axis=dim), c.dtype)


def _product(c: Call, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    return over(c, ops.prod, c.cast(x, c.dtype), dim, keepdim)


def _product_of_all(c: Call, x: Value, dtype: Any = None) -> Value:
    return _product(c, x)


def _norm(c: Call, x: Value, order: float = 2, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    y = c.cast(x, c.dtype)
    if order == 2:
        return _root(c, over(c, ops.sum, y * y, dims, keepdim))
    size = ops.abs(y)
    if order == 1:
        return over(c, ops.sum, size, dims, keepdim)
    if order == 0:
        return over(c, ops.sum, c.cast(ops.logical_not(y.eq(0)), c.dtype), dims, keepdim)
    if math.isinf(order):
        return over(c, ops.max if order > 0 else ops.min, size, dims, keepdim)
    only(order > 1, True, f"whether the order of a norm, {order}, is more than 1")
    total = over(c, ops.sum, ops.pow(size, c.value(order, c.dtype)), dims, keepdim)
    return _root(c, total, 1 / order)


def _root(c: Call, total: Value, power: float = 0.5) -> Value:
    """A root whose gradient at 0 is 0, as that of a norm and of a standard deviation."""
    if not c.learns:
        return ops.sqrt(total) if power == 0.5 else ops.pow(total, c.value(power, total.dtype))
    none = total.eq(0)
    safe = ops.where(none, c.value(1, total.dtype), total)
    root = ops.sqrt(safe) if power == 0.5 else ops.pow(safe, c.value(power, total.dtype))
    return ops.where(none, c.value(0, total.dtype), root)


def _loss(
    c: Call,
    logits: Value,
    labels: Value,
    weight: Value | None = None,
    reduction: int = 1,
    ignored: int = -100,
    smoothing: float = 0.0,
) -> Value:
    """Cross entropy of classes along axis 1, the mean over labels that count."""
    only((weight, reduction), (None, 1), "(weight, reduction) of a loss")
    if labels.dtype.is_float:
        raise UnknownFormError("labels are probabilities of classes")
    order = (0, *range(2, logits.rank), 1) if logits.rank > 1 else (0,)
    rows = logits if logits.rank <= 2 else ops.transpose(logits, permutation=order)
    return ops.cross_entropy(rows, c.cast(labels, i64), ignore_index=ignored, label_smoothing=float(smoothing))


def _squared_error(c: Call, x: Value, y: Value, reduction: int = 1) -> Value:
    gap = x - y
    return _as_asked(c, gap * gap, reduction)


def _absolute_error(c: Call, x: Value, y: Value, reduction: int = 1) -> Value:
    return _as_asked(c, ops.abs(x - y), reduction)


def _as_asked(c: Call, x: Value, reduction: int) -> Value:
    """reduction: 0 none, 1 mean, 2 sum."""
    return x if reduction == 0 else over(c, ops.mean if reduction == 1 else ops.sum, x, None, False)


REDUCTIONS: Table = {
    "aten.sum.default": _sum_of_all,
    "aten.sum.dim_IntList": _sum,
    "aten.mean.default": _mean_of_all,
    "aten.mean.dim": _mean,
    **dict.fromkeys(("aten.amax.default", "aten.max.default"), _extreme(ops.max)),
    **dict.fromkeys(("aten.amin.default", "aten.min.default"), _extreme(ops.min)),
    "aten.max.dim": _extreme_with_place(ops.max, 1),
    "aten.min.dim": _extreme_with_place(ops.min, -1),
    "aten.argmax.default": _place(1),
    "aten.argmin.default": _place(-1),
    **dict.fromkeys(("aten.any.default", "aten.any.dim", "aten.any.dims"), _any),
    **dict.fromkeys(("aten.all.default", "aten.all.dim", "aten.all.dims"), _every),
    "aten.var.correction": _variance,
    "aten.std.correction": _deviation,
    "aten.var_mean.correction": _variance_and_mean,
    **dict.fromkeys(("aten.softmax.int", "aten._softmax.default"), _softmax),
    **dict.fromkeys(("aten.log_softmax.int", "aten._log_softmax.default"), _log_softmax),
    "aten.logsumexp.default": _log_sum_exp,
    "aten.cumsum.default": _running,
    "aten.prod.default": _product_of_all,
    "aten.prod.dim_int": _product,
    "aten.linalg_vector_norm.default": _norm,
    "aten.cross_entropy_loss.default": _loss,
    "aten.mse_loss.default": _squared_error,
    "aten.l1_loss.default": _absolute_error,
}
"""Handlers of the ops of this file."""
