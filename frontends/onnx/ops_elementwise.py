"""Elementwise operators of ONNX in primitives."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

from ...ir import ops
from ...ir.graph import Value
from ...ir.types import DType, bool_
from .errors import Unmapped
from .types import DTYPES
from .use import Handler, Handlers, Use


def unary(function: Callable[[Value], Value]) -> Handler:
    return lambda use: function(use[0])


def binary(function: Callable[[Value, Value], Value]) -> Handler:
    return lambda use: function(use[0], use[1])


def _folded(function: Callable[[Value, Value], Value]) -> Handler:
    """Of any number of operands."""
    return lambda use: reduce(function, use.operands)


def _mean(use: Use) -> Value:
    return reduce(ops.add, use.operands) / float(len(use.node.input))


def divided(x: Value, y: Value) -> Value:
    """x / y; of integers cut towards 0."""
    if x.dtype.is_float:
        return x / y
    if x.dtype.numpy.kind == "u":
        return ops.floor_div(x, y)
    return ops.floor_div(ops.abs(x), ops.abs(y)) * _sign(x) * _sign(y)


def _sign(x: Value) -> Value:
    return ops.sign(x)


def _pow(use: Use) -> Value:
    x, y = use[0], use[1]
    return ops.pow(x, y if y.dtype == x.dtype else y.cast(x.dtype))


def _mod(use: Use) -> Value:
    x, y = use[0], use[1]
    if not use.attribute("fmod", 0):
        return ops.mod(x, y)
    # The rest with the sign of x.
    rest = ops.mod(ops.abs(x), ops.abs(y))
    return ops.where(ops.less(x, _zero(x)), ops.neg(rest), rest)


def _zero(x: Value) -> Value:
    return number(x, 0.0)


def number(x: Value, value: float) -> Value:
    """A constant of the type of x."""
    return ops.constant(value=value if x.dtype.is_float else int(value), dtype=x.dtype)


def _clip(use: Use) -> Value:
    x = use[0]
    if use.version < 11:
        low, high = use.attribute("min"), use.attribute("max")
        bounds = [None if b is None else number(x, b) for b in (low, high)]
    else:
        bounds = [use.get(1), use.get(2)]
    if bounds[0] is not None:
        x = ops.maximum(x, bounds[0])
    return x if bounds[1] is None else ops.minimum(x, bounds[1])


_NUMBERS = {
    DType.f64, DType.f32, DType.f16, DType.bf16, DType.i64, DType.i32, DType.i16, DType.i8, DType.i4,
    DType.u64, DType.u32, DType.u16, DType.u8, DType.u4, DType.bool_,
}  # fmt: skip
"""Types between which casts mean the same here and in ONNX; those of 8-bit floats saturate there."""


def cast_to(x: Value, dtype: DType) -> Value:
    if not _NUMBERS.issuperset((x.dtype, dtype)):
        raise Unmapped(f"a cast from {x.dtype} to {dtype} is not one of numbers alone")
    return x if x.dtype == dtype else x.cast(dtype)


def _cast(use: Use) -> Value:
    to = use.attribute("to")
    if to not in DTYPES:
        raise Unmapped(f"element type {to} has no counterpart in the IR")
    return cast_to(use[0], DTYPES[to])


def _is_nan(use: Use) -> Value:
    return ops.logical_not(ops.equal(use[0], use[0]))


def _is_inf(use: Use) -> Value:
    x = use[0]
    ends = [ops.constant(value=s * math.inf, dtype=x.dtype) for s in (1, -1)]
    wanted = [use.attribute("detect_positive", 1), use.attribute("detect_negative", 1)]
    found = [ops.equal(x, end) for end, want in zip(ends, wanted, strict=True) if want]
    if not found:
        raise Unmapped("neither infinity is asked for")
    return reduce(ops.logical_or, found)


def _round(x: Value) -> Value:
    return ops.round(x)


def _xor(x: Value, y: Value) -> Value:
    return ops.logical_not(ops.equal(x, y))


def _leaky(use: Use) -> Value:
    x = use[0]
    return ops.where(x < 0.0, x * use.attribute("alpha", 0.01), x)


def _prelu(use: Use) -> Value:
    x = use[0]
    return ops.where(ops.less(x, _zero(x)), x * use[1], x)


def _elu(use: Use) -> Value:
    x = use[0]
    return ops.where(x < 0.0, (ops.exp(ops.minimum(x, 0.0)) - 1.0) * use.attribute("alpha", 1.0), x)


def _celu(use: Use) -> Value:
    x, alpha = use[0], use.attribute("alpha", 1.0)
    return ops.maximum(x, 0.0) + ops.minimum((ops.exp(ops.minimum(x, 0.0) / alpha) - 1.0) * alpha, 0.0)


def _selu(use: Use) -> Value:
    x, alpha, gamma = (
        use[0],
        use.attribute("alpha", 1.67326319217681884765625),
        use.attribute("gamma", 1.0507010221481323),
    )
    return ops.where(x <= 0.0, (ops.exp(ops.minimum(x, 0.0)) - 1.0) * alpha, x) * gamma


def _hard_sigmoid(use: Use) -> Value:
    return ops.maximum(ops.minimum(use[0] * use.attribute("alpha", 0.2) + use.attribute("beta", 0.5), 1.0), 0.0)


def _hard_swish(use: Use) -> Value:
    x = use[0]
    return x * ops.maximum(ops.minimum(x * (1.0 / 6.0) + 0.5, 1.0), 0.0)


def _thresholded(use: Use) -> Value:
    x = use[0]
    return ops.where(x > use.attribute("alpha", 1.0), x, 0.0)


def _shrink(use: Use) -> Value:
    x, bias, edge = use[0], use.attribute("bias", 0.0), use.attribute("lambd", 0.5)
    return ops.where(x < -edge, x + bias, ops.where(x > edge, x - bias, 0.0))


def _gelu(use: Use) -> Value:
    return ops.gelu(use[0], tanh=use.attribute("approximate", "none") == "tanh")


def _swish(use: Use) -> Value:
    x, alpha = use[0], use.attribute("alpha", 1.0)
    return ops.silu(x) if alpha == 1.0 else x * ops.sigmoid(x * alpha)


def _softplus(x: Value) -> Value:
    return ops.softplus(x)


def _where(use: Use) -> Value:
    return ops.where(use[0], use[1], use[2])


def _not_wider(function: Callable[[Value, Value], Value]) -> Handler:
    """Comparisons, which the IR has of numbers only."""

    def handler(use: Use) -> Value:
        x, y = use[0], use[1]
        if x.dtype == bool_:
            raise Unmapped("bools are compared")
        return function(x, y)

    return handler


def _reciprocal(x: Value) -> Value:
    return number(x, 1.0) / x


def _sinh(x: Value) -> Value:
    return (ops.exp(x) - ops.exp(ops.neg(x))) * 0.5


def _cosh(x: Value) -> Value:
    return (ops.exp(x) + ops.exp(ops.neg(x))) * 0.5


def _same(use: Use) -> Value:
    return use[0]


def _dropout(use: Use) -> Value:
    """In evaluation, whatever the ratio; a mask that is asked for, or training, leaves it as it is."""
    use.has(1)
    if use.outputs(1):
        raise Unmapped("its mask is read")
    if use.version >= 12 and use.has(2):
        known = use.known(2)
        if known is None or not known.numbers or bool(known.flat[0]):
            raise Unmapped("it is in training mode")
    return use[0]


ELEMENTWISE: Handlers = {
    "Add": binary(ops.add),
    "Sub": binary(ops.sub),
    "Mul": binary(ops.mul),
    "Div": binary(divided),
    "Pow": _pow,
    "Mod": _mod,
    "Max": _folded(ops.maximum),
    "Min": _folded(ops.minimum),
    "Sum": _folded(ops.add),
    "Mean": _mean,
    "Neg": unary(ops.neg),
    "Abs": unary(ops.abs),
    "Exp": unary(ops.exp),
    "Log": unary(ops.log),
    "Sqrt": unary(ops.sqrt),
    "Reciprocal": unary(_reciprocal),
    "Floor": unary(ops.floor),
    "Ceil": unary(ops.ceil),
    "Round": unary(_round),
    "Sign": unary(_sign),
    "Erf": unary(ops.erf),
    "Sin": unary(ops.sin),
    "Cos": unary(ops.cos),
    "Tan": unary(lambda x: ops.sin(x) / ops.cos(x)),
    "Sinh": unary(_sinh),
    "Cosh": unary(_cosh),
    "Tanh": unary(ops.tanh),
    "Sigmoid": unary(ops.sigmoid),
    "Relu": unary(ops.relu),
    "LeakyRelu": _leaky,
    "PRelu": _prelu,
    "Elu": _elu,
    "Celu": _celu,
    "Selu": _selu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "ThresholdedRelu": _thresholded,
    "Shrink": _shrink,
    "Softplus": unary(_softplus),
    "Softsign": unary(lambda x: x / (ops.abs(x) + 1.0)),
    "Mish": unary(lambda x: x * ops.tanh(ops.softplus(x))),
    "Gelu": _gelu,
    "Swish": _swish,
    "Clip": _clip,
    "Cast": _cast,
    "CastLike": lambda use: cast_to(use[0], use[1].dtype),
    "IsNaN": _is_nan,
    "IsInf": _is_inf,
    "Equal": binary(ops.equal),
    "Less": _not_wider(ops.less),
    "LessOrEqual": _not_wider(ops.less_equal),
    "Greater": _not_wider(lambda x, y: ops.less(y, x)),
    "GreaterOrEqual": _not_wider(lambda x, y: ops.less_equal(y, x)),
    "And": binary(ops.logical_and),
    "Or": binary(ops.logical_or),
    "Xor": binary(_xor),
    "Not": unary(ops.logical_not),
    "BitwiseAnd": binary(ops.bitwise_and),
    "BitwiseOr": binary(ops.bitwise_or),
    "BitwiseXor": binary(ops.bitwise_xor),
    "BitwiseNot": unary(ops.bitwise_not),
    "Where": _where,
    "Identity": _same,
    "Dropout": _dropout,
}
"""By op type of the standard domain."""
