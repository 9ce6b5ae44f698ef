"""ATen ops that make one element of one: arithmetic, functions, comparison, logic, selection, casts."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from ...ir import Value, ops
from ...ir.types import bool_, f64, i64
from .call import Call, Number, Table, only

Binary = Callable[[Value, Value], Value]


def _arithmetic(function: Binary) -> Callable[..., Value]:
    def handler(c: Call, x: Number, y: Number, *rest: Any) -> Value:
        return function(c.value(x, c.dtype), c.value(y, c.dtype))

    return handler


def _scaled(function: Binary) -> Callable[..., Value]:
    """For add and sub, whose second operand is multiplied by alpha first."""

    def handler(c: Call, x: Number, y: Number, alpha: float = 1) -> Value:
        if y == 0 and isinstance(x, Value):
            return c.cast(x, c.dtype)
        if c.dtype == bool_:
            return ops.logical_or(c.value(x, bool_), c.value(y, bool_))
        second = c.value(y, c.dtype)
        return function(c.value(x, c.dtype), second if alpha == 1 else second * alpha)

    return handler


def _subtracted_from(c: Call, x: Number, y: Number, alpha: float = 1) -> Value:
    return c.value(y, c.dtype) - c.value(x, c.dtype) * alpha


def _plain(function: Callable[[Value], Value]) -> Callable[..., Value]:
    """Of what the op of the IR takes as it is."""

    def handler(c: Call, x: Value) -> Value:
        return function(x)

    return handler


def _relu(c: Call, x: Value) -> Value:
    return ops.relu(x) if x.dtype.is_float else clamped(c, x, 0)


def _times(c: Call, x: Number, y: Number) -> Value:
    if c.dtype == bool_:
        return c.value(x, bool_) & c.value(y, bool_)
    return c.value(x, c.dtype) * c.value(y, c.dtype)


def _compared(function: Binary, wrong: bool = False) -> Callable[..., Value]:
    """wrong: whether the result is the negation of what the function gives."""

    def handler(c: Call, x: Number, y: Number) -> Value:
        dtype = c.common()
        wide = i64 if dtype == bool_ and function is not ops.equal else dtype
        found = function(c.value(x, wide), c.value(y, wide))
        return ops.logical_not(found) if wrong else found

    return handler


def _logical(function: Binary) -> Callable[..., Value]:
    def handler(c: Call, x: Value, y: Value) -> Value:
        return function(c.value(x, bool_), c.value(y, bool_))

    return handler


def _bitwise(on_bools: Binary, on_integers: Binary, neutral: bool | None = None) -> Callable[..., Value]:
    """neutral: the bool beside which the result is the other operand."""

    def handler(c: Call, x: Number, y: Number) -> Value:
        first, second = c.value(x, c.dtype), c.value(y, c.dtype)
        for one, other in ((first, second), (second, first)):
            if c.dtype == bool_ and one.number is neutral and other.shape == c.shape:
                return other
        return (on_bools if c.dtype == bool_ else on_integers)(first, second)

    return handler


def _function(function: Callable[[Value], Value]) -> Callable[..., Value]:
    """Of floats, to which integers are cast first."""

    def handler(c: Call, x: Value) -> Value:
        return function(c.cast(x, c.dtype))

    return handler


def _rounded(function: Callable[[Value], Value]) -> Callable[..., Value]:
    """Of integers the integers themselves."""

    def handler(c: Call, x: Value) -> Value:
        return function(x) if x.dtype.is_float else x

    return handler


def _not(c: Call, x: Value) -> Value:
    return ops.logical_not(c.cast(x, bool_))


def _bitwise_not(c: Call, x: Value) -> Value:
    return ops.logical_not(x) if x.dtype == bool_ else ops.bitwise_not(x)


def _xor(x: Value, y: Value) -> Value:
    return x ^ y


def _power(c: Call, x: Number, y: Number) -> Value:
    if isinstance(x, Value) and isinstance(y, int) and not c.dtype.is_float:
        return c.cast(x, c.dtype) ** y
    if not c.dtype.is_float:  # Exact below 2 ** 53.
        return c.cast(ops.pow(c.value(x, f64), c.value(y, f64)), c.dtype)
    return ops.pow(c.value(x, c.dtype), c.value(y, c.dtype))


def _square(c: Call, x: Value) -> Value:
    return x * x


def _divided(c: Call, x: Number, y: Number, rounding_mode: str | None = None) -> Value:
    first, second = c.value(x, c.dtype), c.value(y, c.dtype)
    if rounding_mode == "floor":
        return ops.floor_div(first, second)
    if rounding_mode is None:
        return ops.div(first, second)
    if c.dtype.is_float:
        return _truncated(c, ops.div(first, second))
    below = ops.floor_div(ops.abs(first), ops.abs(second))
    return below * ops.sign(first) * ops.sign(second)


def _truncated(c: Call, x: Value) -> Value:
    return ops.where(x < 0, ops.ceil(x), ops.floor(x)) if x.dtype.is_float else x


def _fmod(c: Call, x: Number, y: Number) -> Value:
    first, second = c.value(x, c.dtype), c.value(y, c.dtype)
    rest = ops.mod(ops.abs(first), ops.abs(second))
    return ops.where(first < 0, -rest, rest)


def _reciprocal(c: Call, x: Value) -> Value:
    return 1.0 / c.cast(x, c.dtype)


def clamped(c: Call, x: Value, low: Number | None = None, high: Number | None = None) -> Value:
    """By choices, so that at the bounds the gradient is that of x, as in PyTorch."""
    y = c.cast(x, c.dtype)
    if low is not None:
        least = c.value(low, c.dtype)
        y = ops.where(y < least, least, y)
    if high is not None:
        most = c.value(high, c.dtype)
        y = ops.where(y > most, most, y)
    return y


def _at_most(c: Call, x: Value, high: Number) -> Value:
    return clamped(c, x, None, high)


def _where(c: Call, condition: Value, x: Number, y: Number) -> Value:
    return ops.where(c.cast(condition, bool_), c.value(x, c.dtype), c.value(y, c.dtype))


def _filled(c: Call, x: Value, mask: Value, number: Number) -> Value:
    return ops.where(mask, c.value(number, x.dtype), x)


def _to(c: Call, x: Value, *rest: Any) -> Value:
    return c.cast(x, c.dtype)


def _same(c: Call, x: Value, *rest: Any) -> Value:
    return x


def _detached(c: Call, x: Value) -> Value:
    return c.detached(x)


def _is_nan(c: Call, x: Value) -> Value:
    return x.ne(x) if x.dtype.is_float else c.value(False, bool_)


def _is_infinite(c: Call, x: Value) -> Value:
    return ops.abs(x).eq(math.inf)


def _extreme_beside_nan(function: Binary) -> Callable[..., Value]:
    """fmax, fmin: beside NaN the other one."""

    def handler(c: Call, x: Value, y: Value) -> Value:
        first, second = c.cast(x, c.dtype), c.cast(y, c.dtype)
        if not c.dtype.is_float:
            return function(first, second)
        best = function(first, second)
        return ops.where(first.ne(first), second, ops.where(second.ne(second), first, best))

    return handler


def _shifted(c: Call, x: Value, y: Number) -> Value:
    return c.cast(x, c.dtype) * _power(c, c.value(2, c.dtype), c.value(y, c.dtype))


def _shifted_back(c: Call, x: Value, y: Number) -> Value:
    return ops.floor_div(c.cast(x, c.dtype), _power(c, c.value(2, c.dtype), c.value(y, c.dtype)))


def _logarithm(base: float) -> Callable[..., Value]:
    return _function(lambda x: ops.log(x) * (1.0 / math.log(base)))


def _round(c: Call, x: Value, decimals: int = 0) -> Value:
    only(decimals, 0, "decimals")
    return ops.round(x) if x.dtype.is_float else x


def _scaled_addition(sign: float, function: Binary, c: Call, x: Value, a: Value, b: Value, value: float = 1) -> Value:
    """x + value * a * b, or / b."""
    y = function(c.cast(a, c.dtype), c.cast(b, c.dtype))
    return x + (y if value == 1 else y * (sign * value))


def _mixed(c: Call, x: Value, y: Value, weight: Number) -> Value:
    """x + weight * (y - x)."""
    return x + c.value(weight, x.dtype) * (y - x)


def _dropout(c: Call, x: Value, p: float, train: bool) -> Value:
    if not train or p == 0:
        return x
    return ops.dropout(x, p=p) if p < 1 else x * 0.0


def _native_dropout(c: Call, x: Value, p: float, train: bool | None) -> tuple[Value | None, ...]:
    return (_dropout(c, x, p, train is not False), None)


_LEFT = ("__lshift__.Scalar", "__lshift__.Tensor", "bitwise_left_shift.Tensor", "bitwise_left_shift.Tensor_Scalar")
_RIGHT = ("__rshift__.Scalar", "__rshift__.Tensor", "bitwise_right_shift.Tensor", "bitwise_right_shift.Tensor_Scalar")

ELEMENTWISE: Table = {
    **dict.fromkeys(("aten.add.Tensor", "aten.add.Scalar"), _scaled(ops.add)),
    **dict.fromkeys(("aten.sub.Tensor", "aten.sub.Scalar"), _scaled(ops.sub)),
    "aten.rsub.Scalar": _subtracted_from,
    **dict.fromkeys(("aten.mul.Tensor", "aten.mul.Scalar"), _times),
    **dict.fromkeys(("aten.div.Tensor", "aten.div.Scalar", "aten.div.Tensor_mode", "aten.div.Scalar_mode"), _divided),
    "aten.floor_divide.default": _arithmetic(ops.floor_div),
    **dict.fromkeys(("aten.remainder.Tensor", "aten.remainder.Scalar"), _arithmetic(ops.mod)),
    **dict.fromkeys(("aten.fmod.Tensor", "aten.fmod.Scalar"), _fmod),
    "aten.maximum.default": _arithmetic(ops.maximum),
    "aten.minimum.default": _arithmetic(ops.minimum),
    **dict.fromkeys(("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar"), _power),
    "aten.square.default": _square,
    "aten.addcmul.default": functools.partial(_scaled_addition, 1.0, ops.mul),
    "aten.addcdiv.default": functools.partial(_scaled_addition, 1.0, ops.div),
    **dict.fromkeys(("aten.lerp.Scalar", "aten.lerp.Tensor"), _mixed),
    **dict.fromkeys(("aten.eq.Tensor", "aten.eq.Scalar"), _compared(ops.equal)),
    **dict.fromkeys(("aten.ne.Tensor", "aten.ne.Scalar"), _compared(ops.equal, wrong=True)),
    **dict.fromkeys(("aten.lt.Tensor", "aten.lt.Scalar"), _compared(ops.less)),
    **dict.fromkeys(("aten.le.Tensor", "aten.le.Scalar"), _compared(ops.less_equal)),
    **dict.fromkeys(("aten.gt.Tensor", "aten.gt.Scalar"), _compared(lambda x, y: ops.less(y, x))),
    **dict.fromkeys(("aten.ge.Tensor", "aten.ge.Scalar"), _compared(lambda x, y: ops.less_equal(y, x))),
    "aten.logical_and.default": _logical(ops.logical_and),
    "aten.logical_or.default": _logical(ops.logical_or),
    "aten.logical_xor.default": _logical(_xor),
    "aten.logical_not.default": _not,
    **dict.fromkeys(
        ("aten.bitwise_and.Tensor", "aten.bitwise_and.Scalar"), _bitwise(ops.logical_and, ops.bitwise_and, True)
    ),
    **dict.fromkeys(
        ("aten.bitwise_or.Tensor", "aten.bitwise_or.Scalar"), _bitwise(ops.logical_or, ops.bitwise_or, False)
    ),
    **dict.fromkeys(("aten.bitwise_xor.Tensor", "aten.bitwise_xor.Scalar"), _bitwise(_xor, ops.bitwise_xor, False)),
    "aten.bitwise_not.default": _bitwise_not,
    **dict.fromkeys(("aten.neg.default", "aten._neg_view.default"), _plain(ops.neg)),
    "aten.abs.default": _plain(ops.abs),
    "aten.exp.default": _function(ops.exp),
    "aten.expm1.default": _function(lambda x: ops.exp(x) - 1.0),
    "aten.exp2.default": _function(lambda x: ops.exp(x * math.log(2))),
    "aten.erfc.default": _function(lambda x: 1.0 - ops.erf(x)),
    "aten.sinh.default": _function(lambda x: (ops.exp(x) - ops.exp(-x)) * 0.5),
    "aten.cosh.default": _function(lambda x: (ops.exp(x) + ops.exp(-x)) * 0.5),
    "aten.fmax.default": _extreme_beside_nan(ops.maximum),
    "aten.fmin.default": _extreme_beside_nan(ops.minimum),
    **{f"aten.{name}": _shifted for name in _LEFT},
    **{f"aten.{name}": _shifted_back for name in _RIGHT},
    "aten.log.default": _function(ops.log),
    "aten.log1p.default": _function(lambda x: ops.log(x + 1.0)),
    "aten.log2.default": _logarithm(2),
    "aten.log10.default": _logarithm(10),
    "aten.sqrt.default": _function(ops.sqrt),
    "aten.rsqrt.default": _function(ops.rsqrt),
    "aten.reciprocal.default": _reciprocal,
    "aten.sin.default": _function(ops.sin),
    "aten.cos.default": _function(ops.cos),
    "aten.tan.default": _function(lambda x: ops.sin(x) / ops.cos(x)),
    "aten.tanh.default": _function(ops.tanh),
    "aten.sigmoid.default": _function(ops.sigmoid),
    "aten.erf.default": _function(ops.erf),
    "aten.floor.default": _rounded(ops.floor),
    "aten.ceil.default": _rounded(ops.ceil),
    "aten.round.default": _round,
    "aten.round.decimals": _round,
    "aten.trunc.default": _truncated,
    "aten.sign.default": _plain(ops.sign),
    "aten.isnan.default": _is_nan,
    "aten.isinf.default": _is_infinite,
    "aten.clamp.default": clamped,
    "aten.clamp.Tensor": clamped,
    **dict.fromkeys(("aten.clamp_min.default", "aten.clamp_min.Tensor"), clamped),
    **dict.fromkeys(("aten.clamp_max.default", "aten.clamp_max.Tensor"), _at_most),
    **dict.fromkeys(
        ("aten.where.self", "aten.where.ScalarSelf", "aten.where.ScalarOther", "aten.where.Scalar"), _where
    ),
    **dict.fromkeys(("aten.masked_fill.Scalar", "aten.masked_fill.Tensor"), _filled),
    "aten.relu.default": _relu,
    "aten.silu.default": _plain(ops.silu),
    "aten._to_copy.default": _to,
    **dict.fromkeys(
        ("aten.to.dtype", "aten.to.device", "aten.to.dtype_layout", "aten.to.other", "aten.type_as.default"), _to
    ),
    **dict.fromkeys(
        (
            "aten.alias.default",
            "aten.clone.default",
            "aten.contiguous.default",
            "aten.lift_fresh_copy.default",
            "aten.resolve_conj.default",
            "aten.resolve_neg.default",
        ),
        _same,
    ),
    "aten.detach.default": _detached,
    "aten.dropout.default": _dropout,
    "aten.native_dropout.default": _native_dropout,
}
"""Handlers of the ops of this file."""
