"""ATen ops that neural networks put between their layers: activations, with PyTorch's gradients at their bounds."""

from __future__ import annotations

from ...ir import Value, ops
from .call import Call, Table
from .elementwise import clamped


def _gelu(c: Call, x: Value, approximate: str = "none") -> Value:
    return ops.gelu(x, tanh=approximate == "tanh")


def _softplus(c: Call, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    y = ops.softplus(x if beta == 1 else x * float(beta))
    y = y if beta == 1 else y * (1.0 / beta)
    return ops.where(x * float(beta) > float(threshold), x, y)


def _leaky(c: Call, x: Value, slope: float = 0.01) -> Value:
    return ops.where(x > 0, x, x * float(slope))


def _elu(c: Call, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    # The exponential of the positive side is not taken: it may be infinite, and so would its gradient be.
    inner = ops.where(x > 0, c.value(0, x.dtype), x * float(input_scale))
    below = (ops.exp(inner) - 1.0) * float(alpha)
    return ops.where(x > 0, x, below) * float(scale)


def _between(c: Call, x: Value, low: float, high: float) -> Value:
    """x clamped, where at the bounds no gradient flows, as in PyTorch's activations."""
    inner = (x > float(low)) & (x < float(high))
    return ops.where(inner, x, c.detached(clamped(c, x, low, high)))


def _hard_sigmoid(c: Call, x: Value) -> Value:
    return _between(c, x, -3, 3) * (1 / 6) + 0.5


def _hard_swish(c: Call, x: Value) -> Value:
    inner = x * (x + 3.0) * (1 / 6)
    return ops.where(x <= -3.0, c.value(0, x.dtype), ops.where(x < 3.0, inner, x))


def _hard_tanh(c: Call, x: Value, low: float = -1, high: float = 1) -> Value:
    return _between(c, x, low, high)


def _relu6(c: Call, x: Value) -> Value:
    return _between(c, x, 0, 6)


def _mish(c: Call, x: Value) -> Value:
    return x * ops.tanh(ops.softplus(x))


def _log_sigmoid(c: Call, x: Value) -> Value:
    return -ops.softplus(-x)


def _glu(c: Call, x: Value, dim: int = -1) -> Value:
    at = dim % x.rank
    half = c.shape[at]
    first, second = (ops.slice_(x, axis=at, start=start, length=half) for start in (0, half))
    return first * ops.sigmoid(second)


ACTIVATIONS: Table = {
    "aten.gelu.default": _gelu,
    "aten.softplus.default": _softplus,
    "aten.leaky_relu.default": _leaky,
    "aten.elu.default": _elu,
    "aten.hardsigmoid.default": _hard_sigmoid,
    "aten.hardswish.default": _hard_swish,
    "aten.hardtanh.default": _hard_tanh,
    "aten.relu6.default": _relu6,
    "aten.mish.default": _mish,
    "aten.log_sigmoid.default": _log_sigmoid,
    "aten.glu.default": _glu,
}
