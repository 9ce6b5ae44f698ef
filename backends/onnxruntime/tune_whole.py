"""The last check of a tuning: the whole model as tuned, as shipped, and as ONNX Runtime itself optimises it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...frontends.dsl import Model, plain_graph
from ...ir.errors import LoweringError, MonographError
from ...ir.interpret import resolve
from ...ir.slots import Growth
from ...ir.tensors import Tensor
from ...ir.types import TensorType
from ...passes.encode import keep_encodings
from ...passes.pipelines import PIPELINES
from ..onnx.lower import lower
from ..onnx.save import save
from ..target import PROVIDERS
from .choices import Choices
from .guard import Array
from .options import physical_cores
from .runtime import RUNTIME_ERRORS, Loaded, OrtValue, value_of
from .tune_drafts import Subject, Workshop
from .tune_loads import STEPS, Load, Seconds
from .tune_result import Final, Trial
from .tune_timing import Timing, compared

MOST = 6_000_000_000
"""Bytes of weights of a model that is still written as a whole to be compared."""


def whole_model(
    model: Model, weights: Mapping[str, Tensor], place: Workshop, tuned: Choices, shipped: Choices, seconds: float
) -> Final:
    """Time the whole model in turn. The tuned choices stand only if they are not slower than the shipped ones."""
    graph = plain_graph(model, place.target.dtype)
    size = sum(weights[k].bytes for k in graph.params)
    if size > MOST:
        return Final(note=f"the whole model of {size / 1e9:.1f} GB was not compared, only its layers")
    kinds = {"shipped": shipped} | ({"tuned": tuned} if tuned != shipped else {})
    subjects: dict[str, Subject | Portable] = {name: place.whole(model, choices) for name, choices in kinds.items()}
    note = ""
    try:
        subjects["ONNX Runtime alone"] = Portable(model, weights, place)
    except (MonographError, *RUNTIME_ERRORS) as e:
        note = f"ONNX Runtime alone does not run the portable graph: {str(e).splitlines()[0]}"
    timings = dict(zip(subjects, compared([*subjects.values()], seconds), strict=True))
    slower = "tuned" in timings and timings["tuned"].ratio > 1
    rows = tuple(_row(name, t, slower) for name, t in timings.items())
    return Final(rows, slower, note or _against(timings, slower))


def _against(timings: Mapping[str, Timing], slower: bool) -> str:
    own = timings["tuned" if "tuned" in timings and not slower else "shipped"]
    alone = timings["ONNX Runtime alone"]
    said = f"ONNX Runtime alone takes {alone.ratio / own.ratio:.2f} times the time of this build"
    if alone.high < own.low:
        return f"{said}: no choice here reaches it"
    return said if alone.low > own.high else f"{said}, within the noise"


def _row(name: str, timing: Timing, slower: bool) -> Trial:
    outcome = "slower as a whole: the shipped choices stand" if name == "tuned" and slower else ""
    times = tuple(1e3 * s for s in timing.seconds)
    return Trial("whole model", name, times, timing.ratio, timing.high - timing.low, outcome)


class Portable:
    """The portable graph of a model as any client of ONNX Runtime would run it: all its own optimisations, pasts that
    are passed on from call to call."""

    weights = (1,)

    def __init__(self, model: Model, weights: Mapping[str, Tensor], place: Workshop) -> None:
        if model.task.separated:
            raise LoweringError("an encoder beside a decoder is not compared as a portable graph")
        graph = plain_graph(model, place.target.dtype)
        keep_encodings(graph, weights)
        PIPELINES["decode" if model.task.generates else "encode"].run(graph)
        folder = place.folder / "portable"
        folder.mkdir()
        path = save(lower(graph, weights), folder / "model.onnx")
        self.graph, self.output = graph, model.task.output
        self.loads = tuple(load.within(place.limit) for load in place.loads)
        self.asked = place.loads
        self.rng = np.random.default_rng(0)
        self.loaded = _alone(path, place)

    def seconds(self, load: int, version: int) -> float:
        return self.measure(self.loads[load]).of(self.asked[load])

    def measure(self, load: Load) -> Seconds:
        start = time.perf_counter()
        found = self.loaded.run_values(self.inputs(load.batch, load.prompt, {}))
        prompt = time.perf_counter() - start
        if not load.new or not self.graph.slots:
            return Seconds(prompt)
        steps: list[float] = []
        for i in range(STEPS + 1):
            pasts = {s.input: found[s.output] for s in self.graph.slots}
            given = self.inputs(load.batch, 1, pasts, load.prompt + i)
            start = time.perf_counter()
            found = self.loaded.run_values(given)
            steps.append(time.perf_counter() - start)
        return Seconds(prompt, statistics.median(steps[1:]))

    def inputs(self, batch: int, rows: int, pasts: Mapping[str, OrtValue], past: int = 0) -> dict[str, OrtValue]:
        """What the graph takes for `rows` new tokens behind `past`; floats are random, ids are 0."""
        sizes = self.sized(rows, past) | {"B": batch}
        found: dict[str, OrtValue] = dict(pasts)
        for name, v in self.graph.inputs.items():
            if name not in found and name in self.loaded.inputs:
                found[name] = value_of(self.array(name, v.type, sizes, past))
        return found

    def sized(self, rows: int, past: int) -> dict[str, int]:
        symbols = {s for v in self.graph.inputs.values() for s in v.type.symbols}
        pasts = {s for slot in self.graph.slots if slot.growth is not Growth.once for s in slot.type.symbols} - {"B"}
        return {s: past if s in pasts else rows for s in symbols}

    def array(self, name: str, type: TensorType, sizes: Mapping[str, int], past: int) -> Array:
        shape: tuple[int, ...] = resolve(type.shape, sizes)
        stream = self.graph.stream
        if type.dtype.is_float:
            return np.asarray(self.rng.standard_normal(shape), type.dtype.numpy)
        if stream is not None and name == stream.positions:
            return np.ascontiguousarray(np.broadcast_to(past + np.arange(shape[1]), shape), type.dtype.numpy)
        return np.ones(shape, type.dtype.numpy) if name.endswith("mask") else np.zeros(shape, type.dtype.numpy)


def _alone(path: Path, place: Workshop) -> Loaded:
    """A session with the settings of the runtime."""
    provider = PROVIDERS[place.target.provider]
    return Loaded(path, provider, threads=place.threads or physical_cores(), settings={}, disabled_optimizers=())
