"""Where a factor for each channel of an activation can go, so that the graph stays as it is and computes the same.

y = (x / s) @ (w * s).T is y = x @ w.T. The division is exact where what makes x is linear in a parameter, channel by
channel: the weight of a norm, the rows of a layer before, whatever lies between passes a positive factor on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.graph import Node, Value
from ...ir.ops.attention import Attention
from ...ir.ops.elementwise import Add, Mul
from ...ir.ops.feed_forward import Relu
from ...ir.ops.linear import Linear
from ...ir.ops.norm import LayerNorm, RMSNorm
from ...ir.ops.shape import Reshape, Slice
from ...ir.tensors import Array, Mapped, Tensor
from ...ir.types import f32
from .stream import Layer


@dataclass(frozen=True)
class Place:
    """Entries of a parameter, along an axis, that are multiplied: entry[i] + plus by the factor of channel[i].

    entries: which of the axis. plus: a constant that the graph adds to the parameter.
    """

    parameter: str
    axis: int
    entries: Array
    plus: float = 0.0


@dataclass(frozen=True)
class Fold:
    """How to multiply x by a positive factor a channel. channels: of each channel of x, the number of its factor.

    Channels that share a number (the heads that attend to the same keys) must share the factor. places: their entries
    are those of the numbers.
    """

    channels: Array
    places: tuple[Place, ...]

    @property
    def count(self) -> int:
        """How many factors there are."""
        return int(self.channels.max()) + 1


def fold_of(x: Value, layers: Sequence[Layer]) -> Fold | str:
    """Where factors on x, which these layers read, can go; or why they cannot."""
    nodes = {layer.node for layer in layers}
    other = next((n for n in x.users if n not in nodes), None)
    if other is not None or x.graph.is_output(x):
        return f"its input is also {'an output' if other is None else f'read by {other.op.name}'}"
    shared = next((layer.weight for layer in layers if len(layer.node.value("w").users) > 1), None)
    if shared is not None:
        return f"{shared} is also read elsewhere"
    width = x.shape[-1]
    return _walk(x, np.arange(width)) if isinstance(width, int) else f"its input has {width} channels"


def _walk(x: Value, channels: Array) -> Fold | str:
    """channels: where each channel of x stands among the factors."""
    node = x.producer
    if node is None:
        return "nothing stands before it"
    match node.op:
        case RMSNorm() | LayerNorm():
            return _norm(node, channels)
        case Linear():
            return _layer(node, 0, channels)
        case Relu():
            return _through(node, node.value("x"), channels)
        case Mul():
            return _product(node, channels)
        case Reshape():
            return _heads(node, channels)
        case Slice():
            return _slice(node, channels)
        case _:
            return f"{node.op.name} does not pass a factor on"


def _through(node: Node, x: Value, channels: Array) -> Fold | str:
    """On to what `node` reads, if nobody else does."""
    if x.users != [node] or x.graph.is_output(x):
        return f"what {node.op.name} reads is also read elsewhere"
    return _walk(x, channels)


def _own(v: Value | None, node: Node) -> tuple[str, float] | str:
    """The parameter that a value is, or that a constant is added to, if only `node` reads it."""
    if v is None or v.users != [node]:
        return "its weight is also read elsewhere"
    if v.is_param:
        return v.name, 0.0
    made = v.producer
    if made is not None and isinstance(made.op, Add):
        w, c = made.operands if made.operands[0] is not None and made.operands[0].is_param else made.operands[::-1]
        number = c.number if c is not None else None
        if w is not None and w.is_param and w.users == [made] and isinstance(number, (int, float)):
            return w.name, float(number)
    return "its weight is computed"


def _norm(node: Node, channels: Array) -> Fold | str:
    places: list[Place] = []
    for operand in ("w", "b") if isinstance(node.op, LayerNorm) else ("w",):
        if operand == "b" and node["b"] is None:
            continue
        found = _own(node[operand], node)
        if isinstance(found, str):
            return found
        places.append(Place(found[0], 0, np.arange(len(channels)), found[1]))
    return Fold(channels, tuple(places)) if len(channels) == _last(node.output) else "the norm has other channels"


def _layer(node: Node, start: int, channels: Array) -> Fold | str:
    """Rows of a layer from `start` on."""
    entries = np.arange(start, start + int(channels.max()) + 1)
    w = node.value("w")
    if not w.is_param or w.users != [node]:
        return "the weight before it is also read elsewhere" if w.is_param else "the weight before it is computed"
    places = [Place(w.name, int(bool(node.attributes["transposed"])), entries)]
    bias = node["b"]
    if bias is not None:
        if not bias.is_param or bias.users != [node]:
            return "the bias before it is also read elsewhere"
        places.append(Place(bias.name, 0, entries))
    return Fold(channels, tuple(places))


def _product(node: Node, channels: Array) -> Fold | str:
    reasons: list[str] = []
    for operand in reversed(node.arguments):
        if operand.shape != node.output.shape:
            reasons.append("a factor of another shape")
            continue
        found = _through(node, operand, channels)
        if isinstance(found, Fold):
            return found
        reasons.append(found)
    return "; ".join(dict.fromkeys(reasons))


def _heads(node: Node, channels: Array) -> Fold | str:
    """Heads side by side [.., H*D] of an attention: its output is linear in its values."""
    y = node.value("x")
    made = y.producer
    if made is None or not isinstance(made.op, Attention) or y.users != [node] or y.graph.is_output(y):
        return "reshape does not pass a factor on"
    values = made.value("v")
    keys, heads, width = values.shape[2], y.shape[2], y.shape[3]
    if not isinstance(keys, int) or not isinstance(heads, int) or not isinstance(width, int):
        return "the heads of the attention are not counted"
    if values.users != [made] or node.output.shape[-1] != heads * width:
        return "the values of the attention are also read elsewhere"
    split = values.producer
    if split is None or not isinstance(split.op, Reshape):
        return "the values of the attention are not the rows of a layer"
    if _last(split.value("x")) != keys * width:
        return "the values of the attention are not the rows of a layer"
    head = np.arange(heads) // (heads // keys)
    own = (head[:, None] * width + np.arange(width)).reshape(-1)
    return _through(split, split.value("x"), own[channels])


def _slice(node: Node, channels: Array) -> Fold | str:
    """Some rows of a layer whose others go elsewhere."""
    x, a = node.value("x"), node.attributes
    made = x.producer
    if made is None or not isinstance(made.op, Linear) or a["axis"] not in (-1, x.rank - 1):
        return "slice does not pass a factor on"
    for other in x.users:
        b = other.attributes
        apart = isinstance(other.op, Slice) and b["axis"] == a["axis"]
        if other is not node and not (
            apart and (b["start"] + b["length"] <= a["start"] or a["start"] + a["length"] <= b["start"])
        ):
            return "the slice is also read elsewhere"
    return _layer(made, a["start"], channels) if not x.graph.is_output(x) else "the slice is also an output"


def _last(v: Value) -> object:
    return v.shape[-1]


@dataclass(frozen=True)
class Scaling:
    """Factors on the columns of some layers, and the fold that divides their input by them. factors: f32, by number."""

    layers: tuple[Layer, ...]
    fold: Fold
    factors: Array

    @property
    def columns(self) -> Array:
        """The factor of each column of the layers."""
        return self.factors[self.fold.channels]


def scaled(weights: Mapping[str, Tensor], scalings: Sequence[Scaling]) -> dict[str, Tensor]:
    """The weights with all factors multiplied in, as f32, when they are read."""
    found = dict(weights)
    for scaling in scalings:
        for layer in scaling.layers:
            axis = 0 if layer.turned else 1
            whole = np.arange(len(scaling.columns))
            found[layer.weight] = _times(found[layer.weight], Place(layer.weight, axis, whole), scaling.columns)
        for place in scaling.fold.places:
            found[place.parameter] = _times(found[place.parameter], place, 1 / scaling.factors)
    return found


def _times(tensor: Tensor, place: Place, factors: Array) -> Tensor:
    def apply(x: Array) -> Array:
        y = x.astype(np.float32)
        index = (slice(None),) * place.axis + (place.entries,)
        shaped = factors.reshape(-1, *[1] * (x.ndim - place.axis - 1))
        y[index] = (y[index] + np.float32(place.plus)) * shaped - np.float32(place.plus)
        return y

    return Mapped(tensor, tensor.type.decoded.with_dtype(f32), apply)
