"""Names of activations in config.json, as the names the ops use."""

from __future__ import annotations

from ..ir.errors import ConfigError, did_you_mean

_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}


def activation(name: str) -> str:
    """The op name of an activation in config.json. Raises ConfigError naming the known ones."""
    if name not in _NAMES:
        what = f"activation {name!r} is not supported{did_you_mean(name, _NAMES)}"
        raise ConfigError(what, hint=f"known: {', '.join(_NAMES)}")
    return _NAMES[name]
