"""Methods that look at activations, over a whole model: a plan of plain rounding becomes one that has seen the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...ir.encoded import Encoded
from ...ir.encodings import Encoding
from ...ir.graph import Graph
from ...ir.silent import silent
from ...ir.tensors import Array, Tensor
from ...ir.types import TensorType, f32
from ...ir.weights import Weights
from .folding import Scaling, fold_of, scaled
from .gptq import DAMPING, Gptq
from .grid import numbers
from .plan import Choice, Method, Plan, Progress, written
from .scaling import Found, awq, sampled, smooth
from .statistics import gathered
from .stream import Group, Layer, Sample, Stream


@dataclass(frozen=True)
class Calibrated:
    """Weights and the plan for them. notes: by name of a weight, what the method could not do there, and why."""

    weights: Weights
    plan: Plan
    notes: Mapping[str, str]


@dataclass(frozen=True)
class Ready:
    """Lines that were made already, as a method: what calibration has rounded."""

    name: str
    made: Tensor

    def lines(self, name: str, weight: Array, encoding: Encoding) -> Array:
        return self.made.numpy()


@dataclass(frozen=True)
class Named:
    """A method under the name of what was done before it."""

    name: str
    method: Method

    def lines(self, name: str, weight: Array, encoding: Encoding) -> Array:
        return self.method.lines(name, weight, encoding)


def matrix(layer: Layer, weights: Mapping[str, Tensor]) -> Array:
    """The weight f32 [out, in] of a layer."""
    found = weights[layer.weight].cast(f32).numpy()
    return np.ascontiguousarray(found.T) if layer.turned else found


def rounded(choice: Choice, name: str, weight: Array) -> Array:
    """What is left of a weight [out, in] by a choice."""
    by_row = replace(choice.encoding, axis=-1)
    return numbers(by_row, choice.method.lines(name, weight, by_row))


class Calibration:
    """A graph with its weights, samples of its inputs, and a folder for what lies between its layers."""

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        samples: Sequence[Sample],
        scratch: Path,
        progress: Progress | None = None,
    ) -> None:
        self.weights, self.scratch, self.progress = weights, scratch, progress or silent
        self.stream = Stream(graph, weights, samples, scratch)
        self.done = 0

    def scaled(self, plan: Plan, method: str) -> Calibrated:
        """Factors moved between layers, by `awq` or `smoothquant`, and the plan's own rounding of what comes of it."""
        search = {"awq": awq, "smoothquant": smooth}[method]
        scalings: list[Scaling] = []
        notes: dict[str, str] = {}

        def watch(group: Group) -> dict[str, Tensor]:
            self._report(group)
            wanted = [layer for layer in group.layers if layer.weight in plan]
            fold = fold_of(group.x, group.layers) if wanted else ""
            if isinstance(fold, str):
                notes.update({layer.weight: f"no factors: {fold}" for layer in wanted})
                return {}
            given = {layer.weight: sampled(matrix(layer, self.weights)) for layer in group.layers}

            def rounding(name: str, weight: Array) -> Array:
                return rounded(plan[name], name, weight) if name in plan else weight

            found: Found = search(gathered(group), given, fold, rounding)
            if found.factors is not None:
                scalings.append(Scaling(group.layers, fold, found.factors))
            return {}

        self.stream.watch(watch)
        named = {k: replace(c, method=Named(method, c.method)) for k, c in plan.items()}
        return Calibrated(Weights(scaled(self.weights, scalings)), named, notes)

    def gptq(self, plan: Plan, *, damping: float = DAMPING, ordered: bool = False) -> Calibrated:
        """Codes by GPTQ on the scales of the plan's methods; each layer sees what the rounded ones before it give."""
        made: dict[str, Choice] = {}
        notes: dict[str, str] = {}

        def watch(group: Group) -> dict[str, Tensor]:
            self._report(group)
            wanted = [layer for layer in group.layers if layer.weight in plan]
            changed: dict[str, Tensor] = {}
            gram = gathered(group, gram=True, keep=1).gram if wanted else None
            for layer in wanted:
                name, choice = layer.weight, plan[layer.weight]
                method: Method = choice.method
                if len(layer.node.value("w").users) > 1:
                    notes[name] = "rounded without looking at activations: it is also read elsewhere"
                elif gram is not None:
                    method = Gptq(choice.method, {name: gram}, damping, ordered)
                    made[name] = choice
                weight = matrix(layer, self.weights)
                by_row = replace(choice.encoding, axis=-1)
                lines = written(self._file(name), name, method.lines(name, weight, by_row))
                changed[name] = Encoded(lines, TensorType(f32, weight.shape, by_row))
                if name in made:
                    made[name] = replace(choice, method=Ready("gptq", lines))
            return changed

        self.stream.watch(watch)
        return Calibrated(Weights(self.weights), {**plan, **made}, notes)

    def _file(self, name: str) -> Path:
        self.done += 1
        return self.scratch / f"gptq-{self.done}.lines"

    def _report(self, group: Group) -> None:
        self.progress(0, 0, group.layers[0].weight)
