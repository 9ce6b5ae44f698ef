"""A frozen base in 8 bits: weights that are not trained become integer codes and scales, multiplied out where used."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..ir.errors import WeightsError
from ..ir.graph import Graph, Value
from ..ir.ops import cast
from ..ir.tensors import Array, Mapped, Tensor
from ..ir.types import TensorType, i8
from .lora import ALL, select

CODES, SCALES = "weight_codes", "weight_scales"
_LARGEST = 127


def quantize_frozen(graph: Graph) -> dict[str, int]:
    """The weight of every linear layer but the output's becomes cast(codes) * scales; gives each module's input axis.

    Parameters `<module>.weight_codes` i8, shaped like the weight, and `<module>.weight_scales`, one for each output
    channel, take the place of `<module>.weight`; their values are those of `codes_of`. Adapters stay as they are.
    """
    axes: dict[str, int] = {}
    chosen = {m: nodes for m, nodes in select(graph, ALL).items() if not m.endswith((".lora_A", ".lora_B"))}
    for module, nodes in chosen.items():
        w = nodes[0].value("w")
        axis = axes[module] = 0 if nodes[0].attributes["transposed"] else 1
        codes = graph.param(f"{module}.{CODES}", w.type.with_dtype(i8))
        shape = tuple(1 if i == axis else d for i, d in enumerate(w.shape))
        scales = graph.param(f"{module}.{SCALES}", TensorType(w.dtype, shape))
        for node in nodes:
            with graph.at(node):
                graph.set_operand(node, node.place_of("w"), multiplied_out(codes, scales))
        del graph.params[w.name]
    return axes


def multiplied_out(codes: Value, scales: Value) -> Value:
    """The weight that codes and scales stand for."""
    return cast(codes, dtype=scales.dtype) * scales


def codes_of(axes: Mapping[str, int], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Codes and scales for `quantize_frozen`, made from the weights when they are read.

    A scale is the largest magnitude of its output channel / 127 (1 for a channel of zeros); a code is the nearest
    integer, so a weight is off by at most half a scale. Raises WeightsError for a weight that is not finite.
    """
    made: dict[str, Tensor] = {}
    for module, axis in axes.items():
        w = weights[f"{module}.weight"]
        shape = tuple(1 if i == axis else d for i, d in enumerate(w.shape))
        made[f"{module}.{CODES}"] = Mapped(w, w.type.with_dtype(i8), lambda x, axis=axis: _codes(x, axis))
        made[f"{module}.{SCALES}"] = Mapped(
            w, TensorType(w.dtype, shape), lambda x, axis=axis: _scales(x, axis).astype(x.dtype)
        )
    return made


def _scales(x: Array, axis: int) -> Array:
    largest = np.abs(x.astype(np.float32)).max(axis, keepdims=True)
    if not np.isfinite(largest).all():
        raise WeightsError("a weight that is not finite cannot become codes")
    # Rounded as it is stored, so that codes and scales fit together in narrow types too.
    scales = (np.where(largest > 0, largest, _LARGEST) / np.float32(_LARGEST)).astype(x.dtype)
    return scales.astype(np.float32)


def _codes(x: Array, axis: int) -> Array:
    return np.clip(np.rint(x.astype(np.float32) / _scales(x, axis)), -_LARGEST, _LARGEST).astype(np.int8)
