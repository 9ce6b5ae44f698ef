"""A frozen base in 8 bits: weights that are not trained are stored as codes with one scale an output channel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..ir.encoded import Encoded
from ..ir.encodings import Encoding, int8
from ..ir.graph import Graph
from ..ir.tensors import Array, Mapped, Tensor
from ..ir.types import TensorType
from .encode import encode_param
from .finite import check_finite
from .lora import ALL, select

_LARGEST = 127


def quantize_frozen(graph: Graph) -> dict[str, TensorType]:
    """The weight of every linear layer but the output's is stored as int8; gives their types by path.

    Blocks lie along the input channels, so that each output channel has its scale, of the weight's own width. The
    values are those of `encode_frozen`. Adapters stay as they are, and so does what is stored in blocks already.
    """
    types: dict[str, TensorType] = {}
    chosen = {m: nodes for m, nodes in select(graph, ALL).items() if not m.endswith((".lora_A", ".lora_B"))}
    for nodes in chosen.values():
        w = nodes[0].value("w")
        axis = 0 if nodes[0].attributes["transposed"] else 1
        layout = Encoding(int8.layout, int8.bits, int8.block, w.dtype).along(axis, w.rank)
        types[w.name] = encode_param(graph, w, layout).type
    return types


def encode_frozen(types: Mapping[str, TensorType], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as int8 by path, encoded when they are read.

    A scale is the largest magnitude of its output channel / 127 (1 for a channel of zeros); a code is the nearest
    integer, so a weight is off by at most half a scale. Raises WeightsError for a weight that is not finite.
    """
    return {path: _encoded(path, weights[path], type) for path, type in types.items()}


def _encoded(name: str, w: Tensor, type: TensorType) -> Encoded:
    encoding = type.encoding
    assert encoding is not None

    def lines(x: Array) -> Array:
        check_finite(name, x)
        wide = np.moveaxis(x.astype(np.float32), encoding.axis, -1)[..., None, :]
        scales = _scales(wide, type)
        codes = np.clip(np.rint(wide / scales.astype(np.float32)), -_LARGEST, _LARGEST).astype(np.int8)
        return encoding.joined(codes, scales)

    return Encoded(Mapped(w, type.stored, lines), type)


def _scales(lines: Array, type: TensorType) -> Array:
    """The scale of each line, rounded as it is stored, so that codes and scales fit together in narrow types too."""
    largest = np.abs(lines).max(-1, keepdims=True)
    return (np.where(largest > 0, largest, _LARGEST) / np.float32(_LARGEST)).astype(type.dtype.numpy)
