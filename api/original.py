"""What an ONNX file gives in ONNX Runtime on hard inputs, and whether another file gives the same."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .frontends.onnx.runtime import CRASHING, failures, run_within
from .hard_inputs import IMAGES, TRIALS, Hard, Trial, both_ways, hard_inputs, open_images, valid
from .ir.errors import RuntimeInputError
from .ir.graph import Graph, Node
from .ir.missing import needed
from .ir.ops.foreign import Foreign
from .ir.ops.rounding import Round
from .ir.tensors import Array
from .ir.types import DType

EPSILONS = {DType.f64: 2.0**-52, DType.f32: 2.0**-23, DType.f16: 2.0**-10, DType.bf16: 2.0**-7}
MARGIN = 16
"""How many times the typical error of a sum in another order may be reached."""
MOST = 0.05
"""The largest bound, as a share of the largest number: beyond it nothing would be said."""
STEPS = 254
"""Half steps of the range of an 8-bit number: by one of them a value changes that is rounded the other way."""
MORE = 4
"""How many times as large a second size may be, where a first one had to be searched."""
SMALLEST = 1e-3
"""What errors are a share of where all numbers are smaller: what such numbers are the difference of may be larger."""


def bound_of(graph: Graph) -> float:
    """How far outputs may lie apart, as a share of the largest, when sums are taken in another order.

    Errors of sums of n terms grow with the root of n (a random walk), and add up along the graph as such walks do; each
    rounding to integers may go either way.
    """
    terms, roundings = 64.0, 0
    for node in graph:
        roundings += isinstance(node.op, Round) or _quantizes(node)
        if node.op.heavy and node.arguments:
            last = node.arguments[0].shape[-1:]
            terms += max((d for d in last if isinstance(d, int)), default=64)
        elif isinstance(node.op, Foreign) and node.attributes["captures"]:
            weights = [v.shape[-2:] for v in node.arguments if v.is_param and v.rank > 1]
            terms += sum(min((d for d in pair if isinstance(d, int)), default=64) for pair in weights)
    widths = [v.dtype for v in (*graph.params.values(), *(o for n in graph for o in n.outputs))]
    widest = max((EPSILONS.get(d, 0.0) for d in widths), default=0.0)
    return min(MOST, MARGIN * widest * math.sqrt(terms) + math.sqrt(roundings) / STEPS)


def _quantizes(node: Node) -> bool:
    name = str(node.attributes["name"]) if isinstance(node.op, Foreign) else ""
    return "Quantize" in name or "Integer" in name or "QLinear" in name


def session(path: Path, *, optimized: bool = True) -> Any:
    """A session of a file on the CPU. optimized: the runtime may rewrite it, as it does if nobody says otherwise.

    Raises RuntimeInputError for what the runtime does not take.
    """
    with needed("optimize"):
        ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        left_out = list(CRASHING)
        return ort.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out
        )
    except failures() as e:
        raise RuntimeInputError(f"ONNX Runtime does not take it: {_first(e)}", place=str(path)) from None


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@dataclass(frozen=True)
class Expected:
    """One trial that the original file ran: its inputs, and its outputs by name with the elements that count."""

    trial: Trial
    hard: Hard
    outputs: Mapping[str, tuple[Array, Array]]


@dataclass
class Original:
    """The results of a file on all trials that it takes. refused: those that it does not, and why. bound: see there.

    What the runtime makes of a file where it opens it may be less exact than the file: of products with weights of 8
    bits it rounds the other operand, too. The numbers of either are right.
    """

    bound: float
    path: Path
    expected: list[Expected] = field(default_factory=list[Expected])
    refused: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, path: Path, graph: Graph, trials: tuple[Trial, ...] = TRIALS) -> Original:
        """Run the file. Raises RuntimeInputError where ONNX Runtime does not take it at all."""
        made = cls(bound_of(graph), path)
        own = session(path)
        for trial in both_ways(graph, trials):
            reason = made._run(own, graph, trial)
            if reason:
                reason = made._run(own, graph, replace(trial, joined=True))
            if reason:
                made.refused[str(trial)] = reason
        if not made.expected and open_images(graph):
            made._search(own, graph)
        return made

    def _search(self, own: Any, graph: Graph) -> None:
        """Run the file on images of the smallest sizes that it takes."""
        for size in IMAGES:
            trial = Trial("all-ones", 1, size, joined=True)
            if self.expected and size > MORE * self.expected[0].trial.length:
                break
            if not self._run(own, graph, trial) and len(self.expected) > 1:
                break
        for one in list(self.expected):
            size = one.trial.length
            for trial in (replace(one.trial, batch=3), Trial("holed", 3, size, apart=size)):
                self._run(own, graph, trial)

    def _run(self, own: Any, graph: Graph, trial: Trial) -> str:
        """Keep the outputs of a trial; else why there are none."""
        hard = hard_inputs(graph, trial)
        if hard is None:
            return "its inputs have sizes that are not known, or are too large"
        try:
            found = _outputs(own, hard, self.path)
        except failures() as e:
            return _first(e)
        counted = {k: (y, valid(graph.outputs[k], y, hard)) for k, y in found.items()}
        self.expected.append(Expected(trial, hard, counted))
        return ""

    def difference(self, path: Path) -> tuple[str, float]:
        """(what is wrong with another file, "" if nothing is; the largest error as a share of the largest number)."""
        worst = 0.0
        try:
            other = session(path)
        except RuntimeInputError as e:
            return e.what, worst
        for one in self.expected:
            try:
                found = _outputs(other, one.hard, path)
            except failures() as e:
                return f"{one.trial}: {_first(e)}", worst
            for name, (wanted, counts) in one.outputs.items():
                wrong, error = apart(wanted, found.get(name), counts, self.bound)
                if wrong and (plain := self._as_written(one).get(name)) is not None:
                    again = apart(plain, found.get(name), counts, self.bound)
                    wrong, error = again if not again[0] else (wrong, error)
                if wrong:
                    return f"{one.trial}: output {name}{wrong}", error
                worst = max(worst, error)
        return "", worst

    def _as_written(self, one: Expected) -> dict[str, Array]:
        """The outputs of a trial where the runtime takes the file as it is; none where it does not."""
        try:
            return _outputs(self._plain, one.hard, self.path)
        except (RuntimeInputError, *failures()):
            return {}

    @cached_property
    def _plain(self) -> Any:
        return session(self.path, optimized=False)


def _outputs(own: Any, hard: Hard, path: Path) -> dict[str, Array]:
    names = [o.name for o in own.get_outputs()]
    given = {i.name: hard.feeds[i.name] for i in own.get_inputs()}
    return {k: np.asarray(y) for k, y in zip(names, run_within(own, names, given, str(path)), strict=True)}


def apart(
    wanted: Array, found: Array | None, counts: Array, bound: float, *, least: float = SMALLEST
) -> tuple[str, float]:
    """What differs, and by how much. Elements that are no numbers in the original say nothing.

    least: what errors are a share of where all numbers are smaller.
    """
    if found is None:
        return " is gone", math.inf
    if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        return f" is {found.dtype}{list(found.shape)}, expected {wanted.dtype}{list(wanted.shape)}", math.inf
    if wanted.dtype.kind not in "fV":
        different = (wanted != found) & counts
        return ("", 0.0) if not different.any() else (f" differs in {int(different.sum())} elements", math.inf)
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    counts = counts & ~np.isnan(a)
    finite = counts & np.isfinite(a)
    scale = max(float(np.abs(a[finite]).max(initial=0.0)), least) or 1.0
    with np.errstate(invalid="ignore"):
        gap = np.where(counts & (a != b), np.abs(a - b), 0.0)
    gap = np.where(np.isnan(gap), np.inf, gap)
    error = float(gap.max(initial=0.0)) / scale
    if error <= bound:
        return "", error
    at = np.unravel_index(int(np.argmax(gap)), gap.shape)
    place = ",".join(map(str, at))
    return f"[{place}] is {b[at]:.6g}, expected {a[at]:.6g} (bound {bound * scale:.2g})", error
