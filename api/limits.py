"""Which numbers an option may have, by its name: the same in every command, and checked before a command begins."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_type_hints

from .backends.ort import MOST_THREADS
from .ir.errors import ConfigError

MOST = 2**31 - 1
"""Most of anything that is counted."""
WORKERS = 1024
LARGEST = 1e9
"""Largest factor: no model computes anything with more."""

LIMITS: Mapping[str, tuple[float, float]] = {
    "alpha": (0, LARGEST),
    "batch": (1, MOST),
    "beams": (1, 1024),
    "beta": (0, LARGEST),
    "block": (16, 256),
    "bound": (0, LARGEST),
    "chunk": (1, MOST),
    "connections": (1, 65_536),
    "drain": (0.1, 86_400),
    "dropout": (0, 1),
    "hard": (0, 1),
    "held_out": (0, 1),
    "learning_rate": (0, LARGEST),
    "length": (1, MOST),
    "lookup": (1, 32),
    "max_body": (1, MOST),
    "max_new_tokens": (1, MOST),
    "max_positions": (1, MOST),
    "max_tokens": (1, MOST),
    "new": (1, MOST),
    "new_tokens": (1, MOST),
    "opset": (1, 1000),
    "order": (1, 100),
    "parameters": (1, 2**40),
    "port": (0, 65_535),
    "prefix_cache": (0, 2**30),
    "prompt": (1, MOST),
    "prompts": (0, MOST),
    "queue": (1, MOST),
    "random": (0, 2**63 - 1),
    "rank": (1, MOST),
    "repetition_penalty": (0, LARGEST),
    "rounds": (1, MOST),
    "rows": (1, WORKERS),
    "seed": (0, 2**63 - 1),
    "shard": (1, WORKERS),
    "steps": (1, MOST),
    "temperature": (0, LARGEST),
    "threads": (1, MOST_THREADS),
    "timeout": (0.1, 86_400),
    "tokens": (2, MOST),
    "tolerance": (0, LARGEST),
    "top_k": (1, MOST),
    "top_p": (0, 1),
    "tune_seconds": (1, 86_400),
    "vocab": (1, MOST),
    "window": (8, MOST),
    "workers": (0, WORKERS),
}
"""The least and the most that an option may be. What else is asked of a number, its command or its model knows."""


def numeric_options(function: Callable[..., Any]) -> list[str]:
    """Parameters of a command that are numbers."""
    hints = get_type_hints(function)
    return [k for k in inspect.signature(function).parameters if {int, float} & {hints[k], *get_args(hints[k])}]


def check_numbers(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raises ConfigError naming the first option of a command that has a number it cannot have."""
    for name in numeric_options(function):
        value, (low, high) = given.get(name), LIMITS[name]
        if value is not None and not low <= value <= high:  # Of nan nothing is true.
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} is {reprlib.repr(value)}, expected {_said(low)} to {_said(high)}")


def _said(limit: float) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"
