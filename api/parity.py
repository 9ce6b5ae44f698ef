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
from .frontends.task import Task, positions
from .ir import MonographError, interpret
from .ir.errors import RuntimeInputError
from .ir.tensors import Array
from .passes.differential import CASES, Case, sample_inputs, window
from .portable import first_state, next_state

if TYPE_CHECKING:
    from .backends.onnxruntime import Session

Inputs = Mapping[str, Array]
Spans = Sequence[tuple[int, int]]
"""Tokens start..stop of each call: one span is a plain forward, more are prefill and decode steps."""

Runner = Callable[[Inputs, Spans], Array]
"""(inputs of the plain contract, spans) -> the main output for all positions, float [B,S,...], or [B,...] of rows."""

SESSION = "ort session"

TOLERANCE = 2e-4
"""Largest difference that float32 lowerings may show, relative to the largest expected value if that is above 1."""


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
    `ort` is one call through the mask guard, `ort session` prompts and steps over shared buffers, which hold the tokens
    of a row without gaps: it is compared with the reference on such rows.
    Cases with a past run as prefill and decode and are compared with one full forward. observe: told what runs.
    Raises WeightsError for a model without weights.
    """
    cases = [c for c in cases if not c.past or model.task.generates]
    graph = model.graph()
    inputs = {str(c): sample_inputs(graph, c, seed) for c in cases}
    observe("NumPy reference")
    expected = _reference(model, inputs)
    rows: list[Row] = []
    if torch:
        observe("PyTorch")
        rows += _compare("torch", model, torch_runner(model), cases, inputs, expected, tolerance)
        gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        for name, runner in _built_runners(model, built, Path(folder)):
            observe(name)
            if name == SESSION:
                inputs, expected = _in_front(model, inputs, expected)
            rows += _compare(name, model, runner, cases, inputs, expected, tolerance)
    order = {str(c): i for i, c in enumerate(cases)}
    return Parity(sorted(rows, key=lambda r: order[r.case]), tolerance)


def _reference(model: Model, inputs: Mapping[str, Inputs]) -> dict[str, Array]:
    graph, weights, name = model.graph(), weights_of(model), model.task.output
    params = {k: weights.numpy(k, v.dtype) for k, v in graph.params.items()}
    return {case: interpret(graph, given, params)[name] for case, given in inputs.items()}


def _in_front(
    model: Model, inputs: Mapping[str, Inputs], expected: Mapping[str, Array]
) -> tuple[dict[str, Inputs], dict[str, Array]]:
    """Inputs whose kept tokens stand at the front of each row, and what the reference gives for them.

    A window counts columns: over a row with gaps it sees less than over one without.
    """
    front = {case: in_front(model, given) for case, given in inputs.items()}
    moved = {c: given for c, given in front.items() if any((v != inputs[c][k]).any() for k, v in given.items())}
    return front, {**expected, **_reference(model, moved)}


def _compare(
    backend: str,
    model: Model,
    runner: Runner,
    cases: Iterable[Case],
    inputs: Mapping[str, Inputs],
    expected: Mapping[str, Array],
    tolerance: float,
) -> list[Row]:
    return [
        compare(str(c), backend, want, runner(given, spans(c)), valid(model.task, given), tolerance)
        for c in cases
        for given, want in ((inputs[str(c)], expected[str(c)]),)
    ]


def spans(case: Case) -> Spans:
    """One call, or the past and then the rest."""
    return [(0, case.past), (case.past, case.length)] if case.past else [(0, case.length)]


def valid(task: Task, inputs: Inputs) -> Array:
    """bool [B,S]: the positions of a main output [B,S,...] that mean something; bool [B] where it has no positions."""
    stream = task.stream
    if stream is None or stream.ids not in inputs:
        return np.ones(len(next(iter(inputs.values()))), bool)
    return inputs[stream.mask] != 0 if stream.mask in inputs else np.ones(inputs[stream.ids].shape, bool)


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

    def run(inputs: Inputs, spans: Spans) -> Array:
        with torch.no_grad():
            output = module(**to_inputs(inputs))[model.task.output]
        return output.float().numpy()

    return run


def _built_runners(model: Model, built: Any, folder: Path) -> Iterator[tuple[str, Runner]]:
    """Runners by name, made one after the other, so that only one set of weights is open at a time."""
    if built is None:
        yield "onnx", onnx_runner(export(model, folder / "onnx"), model)
        built = build(model, folder / "cpu")
    if not isinstance(built, (str, Path)):
        session = built.session
    elif (Path(built) / "monograph.json").exists():
        from .backends.onnxruntime import open as open_session

        session = open_session(built)
    else:
        yield "onnx", onnx_runner(Path(built), model)
        return
    yield "ort", run_runner(session, model)
    if session.contract.kind == "decoder":
        yield SESSION, step_runner(session, model)


def run_runner(session: Session, model: Model) -> Runner:
    """A built folder through `Session.run`: any mask, what is remembered passed on by the caller."""
    graph, slots = model.graph(), [s for s in session.contract.slots if s.output]

    def run(inputs: Inputs, spans: Spans) -> Array:
        state: dict[str, Array] = {}
        parts: list[Array] = []
        for start, stop in spans:
            results = session.run({**window(graph, inputs, start, stop), **state})
            state = {s.input: results[s.output] for s in slots}
            parts.append(results[model.task.output])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    return run


def along(model: Model) -> set[str]:
    """Inputs with an entry for each token of the stream, its mask and positions left out."""
    stream = model.task.stream
    assert stream is not None
    found = {k for k, v in model.graph().inputs.items() if stream.length in v.type.symbols}
    return found - {stream.mask, stream.positions}


def in_front(model: Model, inputs: Inputs) -> Inputs:
    """The same rows with the tokens that the mask keeps at their front, and padding behind."""
    stream, mask = model.task.stream, valid(model.task, inputs)
    assert stream is not None
    order = np.argsort(~mask, axis=1, kind="stable")

    def moved(x: Array) -> Array:
        return np.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), 1)

    now = {k: moved(inputs[k]) for k in along(model)} | {stream.mask: moved(mask).astype(np.int64)}
    now[stream.positions] = positions(now[stream.mask])
    return {k: now.get(k, v) for k, v in inputs.items()}


def step_runner(session: Session, model: Model) -> Runner:
    """A built folder as it generates: prompts padded on the right, shared buffers, one token a step.

    Logits of the first span come from prompts of 1, 2, 3... tokens; those of the others from single steps.
    """
    graph, task, moving = model.graph(), model.task, along(model)
    stream, output = task.stream, graph.outputs[task.output]
    assert stream is not None

    def run(inputs: Inputs, spans: Spans) -> Array:
        mask = valid(task, inputs)
        counts, prompts = mask.sum(1), np.maximum(mask[:, : spans[0][1]].sum(1), 1)
        found: Array = np.zeros((*mask.shape, *(n for n in output.shape[2:] if isinstance(n, int))), np.float32)

        def keep(logits: Array, lengths: Array, longest: Array) -> None:
            rows = np.flatnonzero(lengths <= longest)
            found[rows, lengths[rows] - 1] = logits[rows]

        front = {k: inputs[k] for k in moving}
        fixed = {k: v for k, v in inputs.items() if k not in {*moving, *stream.names}}
        if session.contract.encoder:
            session.encode(fixed)
            fixed = {}
        for n in range(1, int(prompts.max()) + 1):
            lengths = np.minimum(prompts, n)
            given = {k: v[:, :n] for k, v in front.items()}
            keep(session.prefill(given.pop(stream.ids), lengths, given | fixed), lengths, prompts)
        for n in range(1, int((counts - prompts).max()) + 1):
            at = np.minimum(prompts + n, mask.shape[1]) - 1
            given = {k: v[np.arange(len(v)), at][:, None] for k, v in front.items()}
            keep(session.step(given.pop(stream.ids)[:, 0], given), prompts + n, counts)
        return found

    return run


def onnx_runner(folder: Path, model: Model) -> Runner:
    """Run an exported folder as any client would, through its named inputs; state is passed on from call to call."""
    import onnxruntime as ort

    def session(name: str) -> Any:
        return ort.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])

    if (folder / "encoder_model.onnx").exists():
        encoder, main = session("encoder_model"), session("decoder_model")
    elif (folder / "model.onnx").exists():
        encoder, main = None, session("model")
    else:
        raise RuntimeInputError("has neither model.onnx nor encoder_model.onnx", place=str(folder))
    graph = model.graph()

    def run(inputs: Inputs, spans: Spans) -> Array:
        source = {} if encoder is None else _call(encoder, inputs)
        state = first_state(main, len(next(iter(inputs.values())))) | next_state(source)
        parts: list[Array] = []
        for start, stop in spans:
            results = _call(main, {**source, **window(graph, inputs, start, stop), **state})
            state |= next_state(results)
            parts.append(results[model.task.output])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    return run


def _call(session: Any, inputs: Inputs) -> dict[str, Array]:
    names = [o.name for o in session.get_outputs()]
    given = {i.name: inputs[i.name] for i in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))
