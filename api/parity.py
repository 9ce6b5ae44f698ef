"""Do all lowerings of a model compute the same? The parity table: hard masks, batches, decode after prefill."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .building import build, export, to_torch, weights_of
from .frontends.dsl import Model
from .ir import MonographError, interpret
from .ir.errors import RuntimeInputError
from .ir.tensors import Array
from .passes.differential import CASES, Case, sample_inputs
from .portable import first_state, next_state

if TYPE_CHECKING:
    from .backends.onnxruntime import Session
    from .frontends.task import Task
    from .ir import Graph
    from .ir.slots import Stream

Inputs = Mapping[str, Array]
Spans = Sequence[tuple[int, int]]
"""Tokens start..stop of each call: one span is a plain forward, more are prefill and decode steps."""

Outputs = Mapping[str, Array]
Runner = Callable[[Inputs, Spans], Outputs]
"""(inputs of the plain contract, spans) -> outputs for all positions, float [B,S,...], or [B,...] of rows."""

TOLERANCE = 2e-4
"""Largest difference that float32 lowerings may show, relative to the largest expected value if that is above 1."""
NARROW = 0.1
"""As TOLERANCE, where a target multiplies weights in blocks by activations that it rounds to 8 bits first."""

SESSION = "ort session"


@dataclass(frozen=True)
class Row:
    """One backend on one case: largest difference at valid positions, and the share of them with the same argmax."""

    case: str
    backend: str
    difference: float
    scale: float
    argmax: float
    passed: bool


@dataclass(frozen=True)
class Tokens:
    """Which inputs come with the tokens of a stream, one entry a token in their second axis."""

    stream: Stream | None
    along: frozenset[str]

    @classmethod
    def of(cls, graph: Graph, stream: Stream | None) -> Tokens:
        length = stream.length if stream is not None and stream.ids in graph.inputs else None
        wide = {k: v.shape[1] for k, v in graph.inputs.items() if v.rank > 1}
        names = {k for k, d in wide.items() if not isinstance(d, int) and length in d.symbols}
        return cls(stream if length is not None else None, frozenset(names))

    def part(self, inputs: Inputs, start: int, stop: int) -> dict[str, Array]:
        """Inputs for tokens start..stop; the mask covers the past too, and what does not come with them stays whole."""
        mask = self.stream.mask if self.stream is not None else ""
        cut = {k: v[:, 0 if k == mask else start : stop] for k, v in inputs.items() if k in self.along}
        return {**inputs, **cut}

    def valid(self, inputs: Inputs) -> Array:
        """bool [B,S], the positions that mean something; [B] where there are no tokens."""
        if self.stream is None:
            return np.ones(len(next(iter(inputs.values()))), bool)
        mask = inputs.get(self.stream.mask)
        return np.ones(inputs[self.stream.ids].shape, bool) if mask is None else mask != 0

    def columns(self, inputs: Inputs) -> Array:
        """i64 [B,S]: the columns of the tokens that count, in front, then the others."""
        return np.argsort(~self.valid(inputs), axis=1, kind="stable")

    def holed(self, inputs: Inputs) -> bool:
        """Whether a row has tokens that do not count between others that do."""
        valid = self.valid(inputs)
        return self.stream is not None and bool((np.diff(valid, axis=1).sum(1) + valid[:, 0] + valid[:, -1] > 2).any())

    def compacted(self, inputs: Inputs, task: Task) -> dict[str, Array]:
        """The same rows with the tokens that count in front."""
        assert self.stream is not None
        row, columns = np.arange(len(self.columns(inputs)))[:, None], self.columns(inputs)
        moved = {k: v[row, columns] if k in self.along else v for k, v in inputs.items()}
        return task.fill({k: v for k, v in moved.items() if k != self.stream.positions}, inputs)

    def beside(self, inputs: Inputs) -> dict[str, Array]:
        """What comes with the tokens and is not made from them."""
        names = self.stream.names if self.stream is not None else ()
        return {k: v for k, v in inputs.items() if k in self.along and k not in names}

    def rest(self, inputs: Inputs) -> dict[str, Array]:
        """What does not come with them."""
        return {k: v for k, v in inputs.items() if k not in self.along}


@dataclass(frozen=True)
class Parity:
    """The table, and whether every row is within the tolerance."""

    rows: list[Row]
    tolerance: float

    @property
    def passed(self) -> bool:
        return all(r.passed for r in self.rows)


def verify(
    model: Model,
    built: Any = None,
    *,
    tolerance: float = TOLERANCE,
    torch: bool = True,
    cases: Iterable[Case] = CASES,
    seed: int = 0,
    observe: Callable[[str], None] = lambda what: None,
) -> Parity:
    """Compare PyTorch and ONNX Runtime with the NumPy reference on all-ones, padded and holed masks, batch 1 and 3.

    built: an engine or the folder of one, or the folder of a portable export; None makes both in a temporary folder.
    `ort` is one call through the mask guard, `ort session` prompts and steps over its buffers. A row tells of the
    output that differs most; a session gives the main one only.
    Cases with a past run as prefill and decode and are compared with one full forward. observe: told what runs.
    Raises WeightsError for a model without weights.
    """
    cases = [c for c in cases if not c.past or model.task.generates]
    graph = model.graph()
    tokens = Tokens.of(graph, model.task.stream)
    inputs = {str(c): sample_inputs(graph, c, seed) for c in cases}
    observe("NumPy reference")
    expected = _reference(model, inputs)
    rows: list[Row] = []
    if torch:
        observe("PyTorch")
        rows += _compare("torch", torch_runner(model), cases, inputs, expected, tolerance, tokens)
        gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        for name, runner, allowed in _built_runners(model, built, Path(folder), tokens):
            observe(name)
            wanted = expected if name != SESSION else {**expected, **_compacted(model, inputs, tokens)}
            rows += _compare(name, runner, cases, inputs, wanted, max(tolerance, allowed), tokens)
    order = {str(c): i for i, c in enumerate(cases)}
    return Parity(sorted(rows, key=lambda r: order[r.case]), tolerance)


def _reference(model: Model, inputs: Mapping[str, Inputs]) -> dict[str, Outputs]:
    graph, weights = model.graph(), weights_of(model)
    params = {k: weights.numpy(k, v.dtype) for k, v in graph.params.items()}
    return {case: interpret(graph, given, params) for case, given in inputs.items()}


def _compacted(model: Model, inputs: Mapping[str, Inputs], tokens: Tokens) -> dict[str, Outputs]:
    """The reference of a session where a mask has holes: it reads the tokens that count and knows of no others, so
    that distances between columns are those without them.
    """
    holed = {case: given for case, given in inputs.items() if tokens.holed(given)}
    found = _reference(model, {case: tokens.compacted(given, model.task) for case, given in holed.items()})
    made: dict[str, Outputs] = {}
    for case, outputs in found.items():
        columns, y = tokens.columns(holed[case]), outputs[model.task.output]
        back = np.empty_like(y)
        back[np.arange(len(y))[:, None], columns] = y
        made[case] = {model.task.output: back}
    return made


def _compare(
    backend: str,
    runner: Runner,
    cases: Iterable[Case],
    inputs: Mapping[str, Inputs],
    expected: Mapping[str, Outputs],
    tolerance: float,
    tokens: Tokens,
) -> list[Row]:
    """A row for each case, of the output that differs most."""
    rows: list[Row] = []
    for case in cases:
        given, wanted = inputs[str(case)], expected[str(case)]
        found, where = runner(given, spans(case)), tokens.valid(given)
        own = [compare(str(case), backend, wanted[k], y, where, tolerance) for k, y in found.items()]
        rows.append(max(own, key=lambda r: r.difference / max(1.0, r.scale)))
    return rows


def spans(case: Case) -> Spans:
    """One call, or the past and then the rest."""
    return [(0, case.past), (case.past, case.length)] if case.past else [(0, case.length)]


def compare(case: str, backend: str, expected: Array, found: Array, where: Array, tolerance: float) -> Row:
    """The row of the table for one output [B,S,...], or [B,...] where all counts. Raises MonographError when the
    shapes differ."""
    if expected.shape != found.shape:
        raise MonographError(f"{backend} gives {list(found.shape)} for {case}, expected {list(expected.shape)}")
    if expected.ndim > where.ndim and expected.shape[: where.ndim] == where.shape:
        expected, found = expected[where], found[where]
    gap = np.abs(expected.astype(np.float64) - found.astype(np.float64))
    difference = float(np.inf if np.isnan(gap).any() else gap.max(initial=0.0))
    scale = float(np.abs(expected).max(initial=0.0))
    argmax = float((expected.argmax(-1) == found.argmax(-1)).mean())
    return Row(case, backend, difference, scale, argmax, difference <= tolerance * max(1.0, scale))


def torch_runner(model: Model) -> Runner:
    """Run the PyTorch lowering; it has no cache, so spans make no difference to it."""
    import torch

    from .backends.torch import to_inputs

    module = to_torch(model).eval()

    def run(inputs: Inputs, spans: Spans) -> Outputs:
        with torch.no_grad():
            return {k: y.float().numpy() for k, y in module(**to_inputs(inputs)).items()}

    return run


def _built_runners(model: Model, built: Any, folder: Path, tokens: Tokens) -> Iterator[tuple[str, Runner, float]]:
    """(name, runner, tolerance it has at least), one after the other, so that only one set of weights is open."""
    names = tuple(model.graph().outputs)
    if built is None:
        yield "onnx", onnx_runner(export(model, folder / "onnx"), names, tokens), 0.0
        built = build(model, folder / "cpu")
    if not isinstance(built, (str, Path)):
        session = built.session
    elif (Path(built) / "monograph.json").exists():
        from .backends.onnxruntime import open as open_session

        session = open_session(built)
    else:
        yield "onnx", onnx_runner(Path(built), names, tokens), 0.0
        return
    from .backends.onnxruntime.quantized import narrow_products

    allowed = NARROW if narrow_products(session.folder) else 0.0
    yield "ort", in_spans(session.run, names, tokens), allowed
    if session.contract.kind == "decoder":
        yield SESSION, step_runner(session, model, tokens), allowed


def in_spans(call: Callable[[Inputs], Outputs], names: Sequence[str], tokens: Tokens) -> Runner:
    """Run a graph span after span, what one call leaves given on to the next; outputs `names` of all spans."""

    def run(inputs: Inputs, spans: Spans) -> Outputs:
        state: dict[str, Array] = {}
        parts: list[Outputs] = []
        for start, stop in spans:
            results = call({**tokens.part(inputs, start, stop), **state})
            state |= next_state(results)
            parts.append(results)
        if len(parts) == 1:
            return {k: parts[0][k] for k in names}
        return {k: np.concatenate([p[k] for p in parts], axis=1) for k in names}

    return run


def step_runner(session: Session, model: Model, tokens: Tokens) -> Runner:
    """A built folder as it generates: prompts without their padding, shared buffers, one token a step.

    Logits of the first span come from prompts of 1, 2, 3... tokens; those of the others from single steps.
    """
    stream, width = tokens.stream, model.graph().outputs[model.task.output].shape[-1]
    assert stream is not None and isinstance(width, int)

    def run(inputs: Inputs, spans: Spans) -> Outputs:
        ids, mask = inputs[stream.ids], tokens.valid(inputs)
        counts, row = mask.sum(1), np.arange(len(ids))[:, None]
        # Columns of the tokens that count, each row's at the front.
        columns = tokens.columns(inputs)
        prompts = np.maximum(mask[:, : spans[0][1]].sum(1), 1)
        found: Array = np.zeros((*ids.shape, width), np.float32)
        rest = tokens.rest(inputs)

        def taken(at: Array) -> tuple[Array, dict[str, Array]]:
            """Tokens of each row, and what comes with them, by their numbers [B,N]."""
            where = columns[row, np.minimum(at, counts[:, None] - 1)]
            return ids[row, where], {k: v[row, where] for k, v in tokens.beside(inputs).items()}

        def keep(logits: Array, lengths: Array, longest: Array) -> None:
            for i in np.flatnonzero(lengths <= longest):
                found[i, columns[i, lengths[i] - 1]] = logits[i]

        if model.task.separated:
            session.encode(rest)
            rest = {}
        for n in range(1, int(prompts.max()) + 1):
            new, beside = taken(np.broadcast_to(np.arange(n), (len(ids), n)))
            lengths = np.minimum(prompts, n)
            keep(session.prefill(new, lengths, {**beside, **rest}), lengths, prompts)
        for n in range(1, int((counts - prompts).max()) + 1):
            new, beside = taken((prompts + n - 1)[:, None])
            keep(session.step(new[:, 0], beside), prompts + n, counts)
        return {model.task.output: found}

    return run


def onnx_runner(folder: Path, names: Sequence[str], tokens: Tokens) -> Runner:
    """Run an exported folder as any client would, through its named inputs; caches are passed on from call to call."""
    import onnxruntime as ort

    def session(name: str) -> Any:
        options = ort.SessionOptions()
        # The file is held against its model, not the 8 bits in which the runtime then multiplies by blocks.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        return ort.InferenceSession(str(folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])

    if (folder / "encoder_model.onnx").exists():
        encoder, main = session("encoder_model"), session("decoder_model")
    elif (folder / "model.onnx").exists():
        encoder, main = None, session("model")
    else:
        raise RuntimeInputError("has neither model.onnx nor encoder_model.onnx", place=str(folder))

    def run(inputs: Inputs, spans: Spans) -> Outputs:
        source = {} if encoder is None else _call(encoder, inputs)
        first = first_state(main, len(next(iter(inputs.values())))) | next_state(source)
        return in_spans(lambda given: _call(main, {**first, **source, **given}), names, tokens)(inputs, spans)

    return run


def _call(session: Any, inputs: Inputs) -> dict[str, Array]:
    names = [o.name for o in session.get_outputs()]
    given = {i.name: inputs[i.name] for i in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))
