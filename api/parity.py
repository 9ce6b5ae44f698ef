"""Do all lowerings of a model compute the same? The parity table: hard masks, batches, steps and chunks."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from .building import build, export, once, weights_of
from .calibrating import trapped_in
from .frontends.dsl import Model
from .frontends.given import model_of
from .frontends.task import columns
from .ir import DType, Graph, MonographError, interpret
from .ir.display import Shown, Table
from .ir.documents import parse_json, read_text
from .ir.encodings import int8
from .ir.manifest import check as check_folder
from .ir.silent import silent
from .ir.tensors import Array
from .machine import has_torch
from .passes.depth import rounding
from .passes.differential import CASES, MASKS, Case
from .passes.quantize.activations import rounding as rounded_reader
from .passes.quantize.report import FILE as QUANTIZATION
from .passes.quantize.stream import Stream
from .runners import Call, Outputs, Runner, Spans, Tokens, onnx_runner, run_runner, session_runner, torch_runner
from .samples import inputs_of, mask_of, random_samples, reads_mask, streams_of

TOLERANCE = 2e-4
"""Largest difference that float32 lowerings may show, relative to the largest expected value if that is above 1."""

ROUNDED = 0.05
"""The same where keys and values are in 8 bits."""

CHANCES, TIMES = 3, 2.0
"""Where products multiply by activations in 8 bits: how often the reference is run with them rounded by chance, and how
many times the largest difference that makes is allowed. A constant would be wide for some models, and narrow for those
in which a rounding chooses other experts."""

CHUNKS = tuple(Case(mask, 3, length=12, past=7) for mask in MASKS[1:])
"""Five tokens at once behind prompts of different lengths."""


@dataclass(frozen=True)
class Row:
    """One output of one backend on one case: largest difference at valid positions, and the share of them with the
    same argmax."""

    case: str
    backend: str
    difference: float
    scale: float
    argmax: float
    passed: bool
    output: str = ""
    tolerance: float = TOLERANCE


@dataclass(frozen=True, repr=False)
class Parity(Shown):
    """The table, and whether every row is within its tolerance: `tolerance`, or more where a way rounds."""

    rows: list[Row]
    tolerance: float

    @property
    def passed(self) -> bool:
        return all(r.passed for r in self.rows)

    def table(self) -> Table:
        """Each way to run the model: its cases, how far it was off at most, and what failed."""
        shown = [("way", "cases", "passed", "largest difference", "same argmax")]
        for name in dict.fromkeys(r.backend for r in self.rows):
            own = [r for r in self.rows if r.backend == name]
            off = max(r.difference / max(r.scale, 1.0) for r in own)
            passed = str(sum(r.passed for r in own))
            shown.append((name, str(len(own)), passed, f"{off:.2g}", f"{min(r.argmax for r in own):.1%}"))
        failed = [r for r in self.rows if not r.passed]
        shown += [
            (f"{r.backend}, {r.case}", "", "FAILED", f"{r.difference:.2g}", f"{r.argmax:.1%}") for r in failed[:8]
        ]
        said = "passed" if self.passed else f"{len(failed)} of {len(self.rows)} rows FAILED"
        note = f"differences are relative to the largest expected value; tolerance {self.tolerance:g}"
        return Table(f"parity with the NumPy reference: {said}", shown, headed=True, note=note)


@dataclass(frozen=True)
class Way:
    """One way to run a model.

    alone: each row gets what it would get alone, without padding; only the main output. tolerance: where it may be off
    by more than the others.
    """

    name: str
    run: Runner
    alone: bool = False
    tolerance: float = 0.0


def verify(
    model: Model,
    built: Any = None,
    *,
    tolerance: float = TOLERANCE,
    torch: bool = True,
    cases: Iterable[Case] | None = None,
    seed: int = 0,
    observe: Callable[[str], None] | None = None,
) -> Parity:
    """Compare PyTorch and ONNX Runtime with the NumPy reference on all-ones, padded and holed masks, batch 1 and 3.

    torch: compare PyTorch, too, where it is installed. cases: masks, batches and lengths (None: CASES and CHUNKS).
    built: an engine or the folder of one, or the folder of a portable export; None makes both in a temporary folder.
    `ort` is one call, with the graph chosen by the mask. `ort session` reads a prompt and then single tokens, `ort
    chunks` several tokens at a time after a prompt; both are compared with each row alone. Cases with a past run as a
    prompt and the tokens after it. Masks are those that the inputs of the model can express. All outputs are compared.
    If products round activations to 8 bits, `ort 8-bit` runs them so, with a tolerance that comes from rounding those
    of the reference, and the other rows run in float; products of integers always round. With keys and values in 8 bits
    all may be off by ROUNDED. What is built in 16-bit floats may be off by `rounding`. observe: called with what runs.
    Raises WeightsError for a model without weights, RuntimeInputError for an export with a node that the runtime has no
    kernel for.
    """
    model, observe = once(model_of(model, "verify")), observe or silent
    cases = [*CASES, *CHUNKS] if cases is None else cases
    cases = [c for c in cases if not c.past or model.task.generates]
    observe("NumPy reference")
    subject = _Subject(model, cases, seed, alone=model.task.generates and not _is_export(built))
    rows: list[Row] = []
    if torch and has_torch():
        observe("PyTorch")
        rows += subject.compare(Way("torch", torch_runner(model)), tolerance)
        gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        for way in _built_ways(model, subject, built, Path(folder)):
            observe(way.name)
            rows += subject.compare(way, tolerance)
    order = {str(c): i for i, c in enumerate(cases)}
    return Parity(sorted(rows, key=lambda r: order[r.case]), tolerance)


class _Subject:
    """A model with the inputs of every case, and what the reference gives for them."""

    def __init__(self, model: Model, cases: Sequence[Case], seed: int, *, alone: bool) -> None:
        self.task, self.graph, self.cases = model.task, model.graph(), cases
        self.told = any(reads_mask(self.graph, s) for s in streams_of(self.task, self.graph))
        # A past changes nothing about what goes in and comes out.
        kinds = {replace(c, past=0) for c in cases}
        self.inputs = {c: inputs_of(self.task, self.graph, c, seed) for c in kinds}
        weights = weights_of(model)
        params = {k: weights.numpy(k, v.dtype) for k, v in self.graph.params.items()}
        self.whole = {c: interpret(self.graph, x, params) for c, x in self.inputs.items() if self.can_tell(c)}
        self.alone = {
            c: self.whole[c][self.task.output]
            if c.mask == "all-ones"
            else rows_alone(self.graph, x, mask_of(c), params, self.task.output)
            for c, x in self.inputs.items()
            if alone and self.graph.stream is not None
        }

    def can_tell(self, case: Case) -> bool:
        return self.told or case.mask == "all-ones"

    def rounded(self, model: Model, built: Path, scratch: Path) -> float:
        """How far activations in 8 bits may move outputs: as they do in the reference, to the nearest and by chance.

        built: its layers that take activations whole do so here.
        """
        weights, worst = weights_of(model), 0.0
        encodings = {k: t.type.encoding for k, t in weights.items() if t.type.encoding is not None}
        # Beside a model as it was before its weights were rounded, all of them count as rounded by rows.
        encodings = encodings or dict.fromkeys(weights, int8)
        for name in _whole_layers(model, built, scratch):
            encodings.pop(name, None)
        cases = [replace(c, past=0) for c in self.cases if self.can_tell(c)]
        cases = list(dict.fromkeys(cases))
        for seed in range(CHANCES + 1):
            read = rounded_reader(encodings, np.random.default_rng(seed) if seed else None)
            stream = Stream(self.graph, weights, [self.inputs[c] for c in cases], scratch, read)
            way = Way("8-bit", lambda call: {})
            for case, found in zip(cases, stream.outputs(), strict=True):
                rows = self._rows(case, way, self.whole[case], found, 0.0)
                worst = max(worst, *(r.difference / max(r.scale, 1.0) for r in rows))
        return TIMES * worst

    def compare(self, way: Way, tolerance: float) -> list[Row]:
        rows: list[Row] = []
        for case in self.cases:
            kind = replace(case, past=0)
            if way.alone or self.can_tell(case):
                found = way.run(Call(self.inputs[kind], spans(case), mask_of(case)))
                expected = {self.task.output: self.alone[kind]} if way.alone else self.whole[kind]
                rows += self._rows(case, way, expected, found, tolerance)
        return rows

    def _rows(
        self, case: Case, way: Way, expected: Mapping[str, Array], found: Outputs, tolerance: float
    ) -> Iterator[Row]:
        for name, wanted in expected.items():
            if name not in found:
                instead = f"only {', '.join(found)}" if found else "so it is another model"
                raise MonographError(f"{way.name} gives no {name} for {case}, {instead}")
            where = mask_of(case) if way.alone else self._where(case, name)
            row = compare(str(case), way.name, wanted, found[name], where != 0, max(tolerance, way.tolerance))
            yield replace(row, output=name)

    def _where(self, case: Case, output: str) -> Array:
        """i64 [B,S]: the tokens of an output that mean something; [B] of ones for one without tokens."""
        inputs, shape = self.inputs[replace(case, past=0)], self.graph.outputs[output].shape
        for stream in streams_of(self.task, self.graph):
            if stream.mask in inputs and len(shape) > 1 and str(shape[1]) == stream.length:
                return inputs[stream.mask]
        return np.ones(case.batch, np.int64)


def rows_alone(
    graph: Graph, inputs: Mapping[str, Array], mask: Array, params: Mapping[str, Array], output: str
) -> Array:
    """The main output [B,S,...] of each row when it runs alone and without what its mask hides; zeros there."""
    tokens, stream = Tokens(graph), graph.stream
    assert stream is not None
    parts: list[tuple[Array, Array]] = []
    for row, keep in enumerate(mask != 0):
        given = {k: v[row : row + 1, keep] if tokens.along(k) else v[row : row + 1] for k, v in inputs.items()}
        count = int(keep.sum())
        own = {stream.mask: np.ones((1, count), np.int64), stream.positions: columns(1, count)}
        given |= {k: v for k, v in own.items() if k in graph.inputs}
        parts.append((keep, interpret(graph, given, params)[output][0]))
    found: Array = np.zeros((*mask.shape, *parts[0][1].shape[1:]), parts[0][1].dtype)
    for row, (keep, values) in enumerate(parts):
        found[row, keep] = values
    return found


def spans(case: Case) -> Spans:
    """One call, or the past and then the rest."""
    return [(0, case.past), (case.past, case.length)] if case.past else [(0, case.length)]


def compare(case: str, backend: str, expected: Array, found: Array, where: Array, tolerance: float) -> Row:
    """The row of the table for one output [B,S,...] at the positions `where` [B,S], or [B,...] where all counts.

    Raises MonographError when the shapes differ.
    """
    if expected.shape != found.shape:
        raise MonographError(f"{backend} gives {list(found.shape)} for {case}, expected {list(expected.shape)}")
    if expected.ndim >= where.ndim and expected.shape[: where.ndim] == where.shape:
        expected, found = expected[where], found[where]
    gap = np.abs(expected.astype(np.float64) - found.astype(np.float64))
    difference = float(np.inf if np.isnan(gap).any() else gap.max(initial=0.0))
    scale = float(np.abs(expected).max(initial=0.0))
    argmax = float((expected.argmax(-1) == found.argmax(-1)).mean())
    return Row(case, backend, difference, scale, argmax, difference <= tolerance * max(1.0, scale), tolerance=tolerance)


def _built_ways(model: Model, subject: _Subject, built: Any, folder: Path) -> Iterator[Way]:
    """Ways to run what is built, made one after the other, so that only one set of weights is open at a time."""
    from .backends.onnxruntime import open as open_session
    from .backends.onnxruntime.quantized import integer_products, narrow_products
    from .backends.onnxruntime.widened import float_of

    graph = subject.graph
    if built is None:
        yield Way("onnx", onnx_runner(export(model, folder / "onnx"), graph))
        built = build(model, folder / "cpu")
    if not isinstance(built, (str, Path)):
        session = built.session
    elif _is_export(built):
        check_folder(Path(built), required=False)
        off = max(
            rounding(graph, float_of(built)),
            subject.rounded(model, Path(built), folder) if integer_products(built) else 0.0,
        )
        yield Way("onnx", onnx_runner(Path(built), graph), tolerance=off)
        return
    else:
        session = open_session(built)
    if narrow_products(session.folder):
        yield Way("ort 8-bit", run_runner(session, graph), tolerance=subject.rounded(model, session.folder, folder))
        session = open_session(session.folder, exact=True)
    off = subject.rounded(model, session.folder, folder) if integer_products(session.folder) else 0.0
    off = max(off, rounding(graph, DType(session.contract.dtype)), ROUNDED if session.contract.cache else 0.0)
    yield Way("ort", run_runner(session, graph), tolerance=off)
    if session.contract.kind == "decoder" and model.task.generates:
        yield Way("ort session", session_runner(session, graph), alone=True, tolerance=off)
        yield Way("ort chunks", session_runner(session, graph, chunks=True), alone=True, tolerance=off)


def _whole_layers(model: Model, built: Path, scratch: Path) -> Collection[str]:
    """Weights of a built folder whose activations are not rounded: as it says, else those that a build would find."""
    if (built / QUANTIZATION).exists():
        said: Any = parse_json(read_text(built / QUANTIZATION))
        return cast("list[str]", said["activations_in_full"])
    return trapped_in(model, weights_of(model), {}, random_samples(model), scratch, lambda e: True)


def _is_export(built: Any) -> bool:
    """Whether that is the folder of a portable export, not of a build."""
    return isinstance(built, (str, Path)) and not (Path(built) / "monograph.json").exists()
