"""Layers of experts that families share: their weights, as checkpoints store them, and the routed feed-forward."""

from __future__ import annotations

from ..ir import Value, ops
from ..ir.tensors import Array
from ..ir.types import TensorType
from ..ir.weights import Mapped, Tensor, Weights
from .activations import activation as op_name
from .dsl import Scope
from .layers import channels_of, widened

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
Names = tuple[str, str, str]


def routed(
    m: Scope,
    x: Value,
    weights: Value,
    indices: Value,
    *,
    count: int,
    width: int,
    activation: str,
    names: Names = PROJECTIONS,
) -> Value:
    """Send each token of x [B,S,C] through the gated feed-forwards that its `indices` [B,S,k] name, and weigh them.

    count: of experts, whose parameters are `m.0.<name>.weight` and so on. activation: by its name in config.json.
    """
    channels = channels_of(x)
    shapes = ((width, channels), (width, channels), (channels, width))
    experts = [
        (m / i / name).param("weight", *shape) for i in range(count) for name, shape in zip(names, shapes, strict=True)
    ]
    return ops.moe(x, weights, indices, *experts, activation=op_name(activation))


def router(m: Scope, name: str, x: Value, count: int) -> Value:
    """Scores [B,S,count] of experts, in f32 where x is narrower: which experts are best must not depend on rounding."""
    w = (m / name).param("weight", count, x.shape[-1])
    return ops.linear(widened(x), widened(w))


def by_expert(weights: Weights, names: Names = PROJECTIONS) -> Weights:
    """Weights in which each expert has its own tensors, also where a checkpoint stacks them.

    Stacked: experts.gate_up_proj [E,2F,C] and experts.down_proj [E,C,F].
    """
    found: dict[str, Tensor] = {}
    gate, up, down = names
    for name, tensor in weights.items():
        place, _, last = name.rpartition(".")
        if tensor.type.rank != 3 or not place.endswith("experts") or last not in ("gate_up_proj", "down_proj"):
            found[name] = tensor
            continue
        for i in range(int(tensor.shape[0])):  # type: ignore[arg-type]
            halves = (gate, up) if last == "gate_up_proj" else (down,)
            for j, half in enumerate(halves):
                found[f"{place}.{i}.{half}.weight"] = _part(tensor, i, j, len(halves))
    return Weights(found, weights.place, weights.metadata)


def _part(stacked: Tensor, i: int, j: int, parts: int) -> Tensor:
    """Part j of `parts` along the rows of matrix i."""
    rows = int(stacked.shape[1]) // parts  # type: ignore[arg-type]

    def cut(x: Array) -> Array:
        return x[i, j * rows : (j + 1) * rows]

    return Mapped(stacked, TensorType(stacked.dtype, (rows, stacked.shape[2])), cut)
