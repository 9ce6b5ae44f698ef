"""`mg.optimize(..., cache=True)`: a decoder in an ONNX file gets our cache, and is held against the file row by row."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from .backends.onnx.folder import foreign
from .building import build
from .frontends.dsl import Model
from .frontends.onnx.crashes import check_runs
from .frontends.onnx.file import OnnxFile, open_onnx
from .frontends.onnx.load import read_graph
from .frontends.onnx.runtime import failures, run_within
from .hard_inputs import rows_of
from .inference.engine import Engine
from .ir.errors import LoweringError, RuntimeInputError
from .ir.files import whole
from .ir.graph import Graph, Value
from .ir.slots import Stream
from .ir.tensors import Array
from .ir.types import Dim, substitute
from .optimizing import OptimizeReport
from .original import bound_of, session
from .parity import CHUNKS, spans
from .passes.canonicalize import canonicalize
from .passes.differential import CASES, Case
from .passes.imported.roles import roles_of
from .passes.past_inputs import past_symbols
from .resolve import load
from .runners import Call, Runner, session_runner
from .samples import mask_of

TASK = "causal-lm"
LONGEST = 1 << 16
"""Ids are drawn below this."""


def with_cache(source: Path, folder: str | Path, report: OptimizeReport, *, strict: bool) -> OptimizeReport:
    """Write `folder` as a build of the decoder in a file, whatever past the file takes itself, and compare both.

    Every row of padded and holed batches must give what the file gives for that row alone from its first token on, by
    a prompt and single tokens and by chunks. Raises PassError with the node and the reason for a file that cannot be
    given a cache, LoweringError for one whose cached form gives other numbers.
    """
    read = open_onnx(source)
    graph, _, _ = read_graph(read)
    check_runs(read, graph)
    model = load(source, task=TASK)
    plain = _Plain(source, graph, model)
    with whole(folder, replaces=foreign) as stage:
        with build(model, stage.work, strict=strict) as engine:
            _compare(plain, engine, model, report)
            _describe(read, engine, model, report)
        if strict and report.refusals:
            what = f"{len(report.refusals)} rewrites were refused, and all were asked for"
            raise LoweringError(what, place=str(source), details=report.refusals)
    return report


class _Plain:
    """A file run on one row at a time, from its first token on."""

    def __init__(self, source: Path, graph: Graph, model: Model) -> None:
        self.graph, self.stream, self.path = graph, _stream(model), source
        self.own: Any = session(source)
        self.pasts = past_symbols(graph)
        known = graph.copy()
        canonicalize(known)
        self.roles = roles_of(known, self.stream, model.task.output, model.task.zeros)
        self.output = _logits(graph, model.task.output)
        self.bound = bound_of(graph)

    def __call__(self, row: Array) -> Array:
        """Logits [S,V] of a row of tokens [S]."""
        found = self._run(row)
        if found.ndim == 2 and len(found) == len(row):
            return found
        return np.concatenate([self._run(row[: n + 1]).reshape(1, -1) for n in range(len(row))])

    def _run(self, row: Array) -> Array:
        """What the file gives for a row: by token, or for the last one alone."""
        given = {name: self._given(name, v, row) for name, v in self.graph.inputs.items()}
        wanted = {i.name: given[i.name] for i in self.own.get_inputs()}
        try:
            (found,) = run_within(self.own, [self.output], wanted, str(self.path))
        except failures() as e:
            what = f"ONNX Runtime does not run it from its first token on: {' '.join(str(e).split())[:200]}"
            raise RuntimeInputError(what, place=str(self.path)) from None
        return np.asarray(found)[0]

    def _given(self, name: str, v: Value, row: Array) -> Array:
        role = self.roles.get(name)
        if role == self.stream.ids:
            return row[None].astype(v.dtype.numpy)
        if role == self.stream.positions:
            return np.arange(len(row))[None].astype(v.dtype.numpy)
        symbols = [(i, s) for i, d in enumerate(v.shape) if isinstance(d, Dim) for s in d.symbols]
        sizes = {s: 1 if i == 0 else len(row) for i, s in symbols}
        sizes |= dict.fromkeys(self.pasts.values(), 0)
        shape = tuple(int(str(d)) for d in substitute(v.shape, sizes))
        return np.full(shape, int(role == self.stream.mask), v.dtype.numpy)


def _stream(model: Model) -> Stream:
    stream = model.graph(model.dtype).stream
    assert stream is not None
    return stream


def _logits(graph: Graph, name: str) -> str:
    """The output by token that is no cache, as the task found it, too; of the last one, if there is none."""
    fitting = {k: v for k, v in graph.outputs.items() if v.dtype.is_float and isinstance(v.shape[-1], int)}
    of_rank = [k for rank in (3, 2) for k, v in fitting.items() if v.rank == rank]
    return name if name in graph.outputs else of_rank[0]


def _compare(plain: _Plain, engine: Engine, model: Model, report: OptimizeReport) -> None:
    """Fill in how far the engine is off. Raises LoweringError beyond the bound."""
    graph = model.graph(model.dtype)
    report.bound = plain.bound
    ids = graph.inputs[plain.stream.ids]
    rows = min(rows_of(ids) or LONGEST, LONGEST)
    ways: list[tuple[Runner, list[Case]]] = [
        (session_runner(engine.session, graph), [c for c in CASES if c.past or c.mask != "all-ones"]),
        (session_runner(engine.session, graph, chunks=True), list(CHUNKS)),
    ]
    for run, cases in ways:
        for case in cases:
            _one(plain, run, case, rows, report)
            report.trials += 1


def _one(plain: _Plain, run: Runner, case: Case, most: int, report: OptimizeReport) -> None:
    rng = np.random.default_rng(case.batch * 100 + case.length)
    tokens, mask = rng.integers(0, most, (case.batch, case.length)), mask_of(case)
    inputs = {plain.stream.ids: tokens, plain.stream.mask: mask}
    inputs[plain.stream.positions] = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    found = next(iter(run(Call(inputs, spans(case), mask)).values()))
    for number, (row, kept) in enumerate(zip(tokens, mask != 0, strict=True)):
        wanted = plain(row[kept]).astype(np.float64)
        gap = np.abs(found[number, kept].astype(np.float64) - wanted)
        error = float(
            np.where(np.isnan(gap), np.inf, gap).max(initial=0.0) / max(np.abs(wanted).max(initial=0.0), 1e-3)
        )
        report.error = max(report.error, error)
        if error > plain.bound:
            what = f"with a cache it gives other numbers than the file: {case}, row {number}: off by {error:.2g}"
            raise LoweringError(f"{what} of the largest (bound {plain.bound:.2g})", place=str(plain.path))


def _describe(read: OnnxFile, engine: Engine, model: Model, report: OptimizeReport) -> None:
    """What was raised and written."""
    built = engine.report
    assert built is not None
    layers = Counter(n.op.name for n in model.graph(model.dtype) if n.op.body is not None)
    report.layers = dict(sorted(layers.items(), key=lambda item: (-item[1], item[0])))
    report.counts = next(iter(built.nodes.values()))
    report.nodes = len(read.model.graph.node), sum(report.counts.values())
    report.unfused = [str(miss) for miss in built.misses]
