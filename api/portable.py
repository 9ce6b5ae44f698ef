"""The state of an exported model between calls: what its file says it remembers, for any client of the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from .backends.onnx.metadata import SLOTS, STREAM
from .backends.onnxruntime.contract import slots_of as read_slots
from .backends.onnxruntime.contract import stream_of as read_stream
from .ir.slots import PAST, TARGETS, TOKENS, Growth, Slot, Stream, next_input
from .ir.tensors import Array
from .ir.types import Dim, DType, TensorType
from .passes.differential import newest

ELEMENT = {
    "tensor(float)": DType.f32,
    "tensor(float16)": DType.f16,
    "tensor(double)": DType.f64,
    "tensor(bfloat16)": DType.bf16,
}


def slots_of(session: Any) -> tuple[Slot, ...]:
    """What the file of an ONNX Runtime session remembers: as it says, or by the names that other exporters use.

    Raises ConfigError for metadata that is damaged.
    """
    said = session.get_modelmeta().custom_metadata_map
    if SLOTS in said:
        return read_slots(said[SLOTS])
    inputs = {i.name: i for i in session.get_inputs()}
    named = [(inputs.get(next_input(o.name) or ""), o.name) for o in session.get_outputs()]
    return tuple(_named(given, output) for given, output in named if given is not None and given.type in ELEMENT)


def stream_of(session: Any) -> Stream | None:
    """The tokens that the file of a session reads: as it says, or by the names that other exporters use."""
    said = session.get_modelmeta().custom_metadata_map
    if STREAM in said:
        return read_stream(said[STREAM])
    names = {i.name for i in session.get_inputs()}
    return next((s for s in (TARGETS, TOKENS) if s.ids in names), None)


def first_state(session: Any, batch: int) -> dict[str, Array]:
    """Pasts with nothing in them and states of zeros, by the names of a session's inputs."""
    slots = {s.input: s for s in slots_of(session) if s.growth is not Growth.once}
    wanted = [i.name for i in session.get_inputs() if i.name in slots]
    return {name: np.zeros(_empty(slots[name], batch), slots[name].type.dtype.numpy) for name in wanted}


def next_state(results: Mapping[str, Any], slots: Sequence[Slot]) -> dict[str, Any]:
    """What a call leaves for the next one, under the names of inputs; of a window, no more than still counts.

    results: arrays by the names of outputs, of the decoder, or of the encoder that runs before it.
    """
    found: dict[str, Any] = {s.input: results[s.first] for s in slots if s.first in results}
    for slot in slots:
        if slot.output in results:
            value = results[slot.output]
            found[slot.input] = newest(cast("Array", value), slot) if isinstance(value, np.ndarray) else value
    return found


def _named(given: Any, output: str) -> Slot:
    """A slot by the names of another exporter: an axis with a length of its own, behind the rows, is what grows."""
    named = [i for i, d in enumerate(given.shape) if i > 0 and not isinstance(d, int)]
    shape = tuple(d if isinstance(d, int) else Dim.symbol(PAST if i else "B") for i, d in enumerate(given.shape))
    growth = Growth.append if named else Growth.replace
    return Slot(given.name, output, growth, TensorType(ELEMENT[given.type], shape), named[-1] if named else None)


def _empty(slot: Slot, batch: int) -> tuple[int, ...]:
    return tuple(batch if i == 0 else d if isinstance(d, int) else 0 for i, d in enumerate(slot.type.shape))
