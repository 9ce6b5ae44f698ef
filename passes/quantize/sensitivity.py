"""How much each weight suffers from fewer bits, measured on activations, and which to give more within a budget.

Layers that read one input go together: targets pack them into one product, which needs one encoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...ir.graph import Graph
from ...ir.tensors import Array, Tensor
from .calibration import matrix
from .scaling import sampled
from .statistics import gathered
from .stream import Group, Layer, Sample, Stream


@dataclass(frozen=True)
class Level:
    """All weights in one form, from few bits to many. A weight that is not in `tensors` has no such form."""

    name: str
    tensors: Mapping[str, Tensor]
    bytes: Mapping[str, int]


@dataclass(frozen=True)
class Unit:
    """Weights that change together. levels: numbers of the forms that they have, from few bits to many.

    errors: of each, the squared error of their outputs by what the outputs are. bytes: of each, what they take.
    """

    weights: tuple[str, ...]
    levels: tuple[int, ...]
    errors: tuple[float, ...]
    bytes: tuple[int, ...]


@dataclass(frozen=True)
class Move:
    """One unit takes its next form. gain: of squared error, a byte."""

    unit: int
    gain: float
    bytes: int


def units_of(
    graph: Graph, weights: Mapping[str, Tensor], levels: Sequence[Level], samples: Sequence[Sample], scratch: Path
) -> list[Unit]:
    """The weights of all levels but the last, which holds them as they are, with their errors."""
    found: list[Unit] = []
    names = [k for k in levels[-1].bytes if any(k in level.tensors for level in levels[:-1])]
    left = dict.fromkeys(names)

    def watch(group: Group) -> dict[str, Tensor]:
        layers = [layer for layer in group.layers if layer.weight in left]
        for together in _alike(layers, levels):
            for layer in together:
                left.pop(layer.weight, None)
            found.append(_unit(together, weights, levels, gathered(group).rows))
        return {}

    Stream(graph, weights, samples, scratch).watch(watch)
    return [*found, *(_alone(name, weights, levels) for name in left)]


def _alike(layers: Sequence[Layer], levels: Sequence[Level]) -> list[list[Layer]]:
    """Layers that have the same forms, in the order given."""
    found: dict[tuple[int, ...], list[Layer]] = {}
    for layer in layers:
        found.setdefault(_levels(layer.weight, levels), []).append(layer)
    return list(found.values())


def _levels(name: str, levels: Sequence[Level]) -> tuple[int, ...]:
    last = len(levels) - 1
    return tuple(i for i, level in enumerate(levels) if i == last or name in level.tensors)


def _unit(layers: Sequence[Layer], weights: Mapping[str, Tensor], levels: Sequence[Level], x: Array) -> Unit:
    numbers = _levels(layers[0].weight, levels)
    off, whole = np.zeros(len(numbers)), 0.0
    for layer in layers:
        w = sampled(matrix(layer, weights))
        whole += float(np.square(x @ w.T, dtype=np.float64).mean())
        for i, level in enumerate(numbers[:-1]):
            kept = sampled(matrix(layer, levels[level].tensors))
            off[i] += float(np.square(x @ (kept - w).T, dtype=np.float64).mean())
    names = tuple(layer.weight for layer in layers)
    sizes = tuple(sum(levels[level].bytes[k] for k in names) for level in numbers)
    return Unit(names, numbers, tuple((off / max(whole, 1e-30)).tolist()), sizes)


def _alone(name: str, weights: Mapping[str, Tensor], levels: Sequence[Level]) -> Unit:
    """A weight that no layer multiplies by, such as a table: by the error of its own numbers."""
    numbers = _levels(name, levels)
    w = sampled(np.atleast_2d(weights[name].numpy().astype(np.float32)))
    whole = max(float(np.square(w).mean()), 1e-30)
    errors = [
        float(np.square(sampled(np.atleast_2d(levels[i].tensors[name].numpy().astype(np.float32))) - w).mean()) / whole
        for i in numbers[:-1]
    ]
    return Unit((name,), numbers, (*errors, 0.0), tuple(levels[i].bytes[name] for i in numbers))


def moves_of(units: Sequence[Unit]) -> list[Move]:
    """What to widen first: the most error for the fewest bytes. A unit's moves come in their order."""
    found: list[tuple[float, int, Move]] = []
    for i, unit in enumerate(units):
        least = float("inf")
        for step in range(len(unit.levels) - 1):
            more = unit.bytes[step + 1] - unit.bytes[step]
            gain = (unit.errors[step] - unit.errors[step + 1]) / max(more, 1)
            least = min(least, gain)
            found.append((-least, step, Move(i, gain, more)))
    return [move for *_, move in sorted(found, key=lambda item: item[:2])]


def after(units: Sequence[Unit], moves: Sequence[Move], count: int) -> dict[str, int]:
    """The number of the level of each weight after so many moves."""
    at = [0] * len(units)
    for move in moves[:count]:
        at[move.unit] += 1
    return {name: unit.levels[at[i]] for i, unit in enumerate(units) for name in unit.weights}


def size_after(units: Sequence[Unit], moves: Sequence[Move], count: int) -> int:
    """Bytes of all units after so many moves."""
    return sum(u.bytes[0] for u in units) + sum(m.bytes for m in moves[:count])
