"""Where the time of a run goes: kernels of the runtime's profiler, grouped by the layers that they came from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class Layer:
    """All kernels of one kind. scope: path of the layer, with N for the number of its block; "": of no layer.

    milliseconds: of all of them together. share: of the time of all kernels.
    """

    scope: str
    op: str
    count: int
    milliseconds: float
    share: float


def layers_of(events: Sequence[Mapping[str, Any]]) -> tuple[Layer, ...]:
    """Kernels of a profile by layer and op, the slowest first.

    The nodes of our graphs are named by the scope of what they compute and their op: `model.layers.3.mlp/MatMul`; those
    of others are grouped by the folders of their names.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for event in events:
        name = str(event["name"]).removesuffix(_SUFFIX)
        scope = re.sub(r"(?<=[./])\d+(?=[./]|$)", "N", name.rpartition("/")[0])
        op = str(event.get("args", {}).get("op_name", ""))
        found.setdefault((scope, op), []).append(float(event["dur"]) / 1e3)
    total = sum(map(sum, found.values())) or 1.0
    layers = (Layer(scope, op, len(ms), sum(ms), sum(ms) / total) for (scope, op), ms in found.items())
    return tuple(sorted(layers, key=lambda layer: -layer.milliseconds))
