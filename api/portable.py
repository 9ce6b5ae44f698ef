"""The state of an exported model between calls, by the names of its inputs and outputs, for any client of the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from .ir.tensors import Array

T = TypeVar("T")
_PAST = {"present.": "past_key_values.", "present_": "past_", "initial_state.": "past_state."}


def next_state(results: Mapping[str, T]) -> dict[str, T]:
    """What a call leaves for the next one: its present.* and present_* outputs under the names of inputs.

    initial_state.* of an encoder is the first past_state.* of its decoder.
    """
    found: dict[str, T] = {}
    for name, value in results.items():
        for present, past in _PAST.items():
            if name.startswith(present):
                found[past + name.removeprefix(present)] = value
    return found


def first_state(session: Any, batch: int) -> dict[str, Array]:
    """Caches with nothing in them [B,K,0,D] and states of zeros [B,H], for the inputs past_* of an ONNX session."""
    state: dict[str, Array] = {}
    for slot in session.get_inputs():
        if slot.name.startswith("past_"):
            rest = (n if isinstance(n, int) else 0 for n in slot.shape[1:])
            state[slot.name] = np.zeros((batch, *rest), ELEMENT[slot.type])
    return state


ELEMENT = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
