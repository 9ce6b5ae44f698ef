"""The state of an exported model between calls, by the names of its inputs and outputs, for any client of the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from .ir.slots import is_past, next_input
from .ir.tensors import Array

T = TypeVar("T")


def next_state(results: Mapping[str, T]) -> dict[str, T]:
    """What a call leaves for the next one, or an encoder for the first one, under the names of inputs."""
    named = {next_input(name): value for name, value in results.items()}
    return {name: value for name, value in named.items() if name is not None}


def first_state(session: Any, batch: int) -> dict[str, Array]:
    """Caches with nothing in them [B,K,0,D] and states of zeros [B,H], for the inputs of an ONNX Runtime session."""
    state: dict[str, Array] = {}
    for slot in session.get_inputs():
        if is_past(slot.name):
            rest = (n if isinstance(n, int) else 0 for n in slot.shape[1:])
            state[slot.name] = np.zeros((batch, *rest), ELEMENT[slot.type])
    return state


ELEMENT = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
