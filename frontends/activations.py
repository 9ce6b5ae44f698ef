"""Activations by their names in config.json: as one op where there is one, else written out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..ir import Value, ops
from ..ir.errors import ConfigError, did_you_mean
from ..ir.ops.feed_forward import activate

_NAMES = {
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate", "gelu_python_tanh"), "gelu_tanh"),
    **dict.fromkeys(("silu", "swish"), "silu"),
    "relu": "relu",
}
"""Those that are ops => their names there."""


def _number(x: Value, value: float) -> Value:
    return ops.constant(value=value, dtype=x.dtype)


def _relu6(x: Value) -> Value:
    return ops.minimum(ops.relu(x), _number(x, 6.0))


def _clipped_gelu(x: Value) -> Value:
    return ops.minimum(ops.maximum(ops.gelu(x), _number(x, -10.0)), _number(x, 10.0))


def _laplace(x: Value) -> Value:
    """The distribution function of a normal distribution. (Ma et al. 2022)"""
    return (ops.erf((x - 0.707107) * (1.0 / (0.282095 * math.sqrt(2.0)))) + 1.0) * 0.5


_WRITTEN: Mapping[str, Callable[[Value], Value]] = {
    "gelu_10": _clipped_gelu,
    "hardswish": lambda x: x * _relu6(x + 3.0) * (1.0 / 6.0),
    "laplace": _laplace,
    "leaky_relu": lambda x: ops.maximum(x, x * 0.01),
    "linear": lambda x: x,
    "mish": lambda x: x * ops.tanh(ops.softplus(x)),
    "quick_gelu": lambda x: x * ops.sigmoid(x * 1.702),
    "relu2": lambda x: ops.relu(x) * ops.relu(x),
    "relu6": _relu6,
    "sigmoid": ops.sigmoid,
    "tanh": ops.tanh,
}


def activation(name: str) -> str:
    """The name that ops know an activation of config.json by. Raises ConfigError for one that is no op of its own."""
    if name in _NAMES:
        return _NAMES[name]
    known = _NAMES if name in _WRITTEN else {**_NAMES, **_WRITTEN}
    where = " inside experts" if name in _WRITTEN else ""
    what = f"activation {name!r} is not supported{where}{did_you_mean(name, known)}"
    raise ConfigError(what, hint=f"known: {', '.join(known)}")


def activated(x: Value, name: str) -> Value:
    """x after the activation that config.json calls so. Raises ConfigError naming the known ones."""
    return _WRITTEN[name](x) if name in _WRITTEN else activate(x, activation(name))
