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

Inputs = Mapping[str, Array]
Spans = Sequence[tuple[int, int]]
"""Tokens start..stop of each call: one span is a plain forward, more are prefill and decode steps."""

Runner = Callable[[Inputs, Spans], Array]
"""(inputs of the plain contract, spans) -> the main output for all positions, float [B,S,...], or [B,...] of rows."""

TOLERANCE = 2e-4
"""Largest difference that float32 lowerings may show, relative to the largest expected value if that is above 1."""
NARROW = 0.1
"""As TOLERANCE, where a target multiplies weights in blocks by activations that it rounds to 8 bits first."""


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
    `ort` is one call through the mask guard, `ort session` prompts and steps over shared buffers.
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
        rows += _compare("torch", torch_runner(model), cases, inputs, expected, tolerance)
        gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        for name, runner, allowed in _built_runners(model, built, Path(folder)):
            observe(name)
            rows += _compare(name, runner, cases, inputs, expected, max(tolerance, allowed))
    order = {str(c): i for i, c in enumerate(cases)}
    return Parity(sorted(rows, key=lambda r: order[r.case]), tolerance)


def _reference(model: Model, inputs: Mapping[str, Inputs]) -> dict[str, Array]:
    graph, weights, name = model.graph(), weights_of(model), model.task.output
    params = {k: weights.numpy(k, v.dtype) for k, v in graph.params.items()}
    return {case: interpret(graph, given, params)[name] for case, given in inputs.items()}


def _compare(
    backend: str,
    runner: Runner,
    cases: Iterable[Case],
    inputs: Mapping[str, Inputs],
    expected: Mapping[str, Array],
    tolerance: float,
) -> list[Row]:
    return [
        compare(str(c), backend, expected[str(c)], runner(inputs[str(c)], spans(c)), valid(inputs[str(c)]), tolerance)
        for c in cases
    ]


def spans(case: Case) -> Spans:
    """One call, or the past and then the rest."""
    return [(0, case.past), (case.past, case.length)] if case.past else [(0, case.length)]


def valid(inputs: Inputs) -> Array:
    """bool [B,S]: the positions of a main output [B,S,...] that mean something."""
    return inputs.get("decoder_attention_mask", inputs["attention_mask"]) != 0


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


def _built_runners(model: Model, built: Any, folder: Path) -> Iterator[tuple[str, Runner, float]]:
    """(name, runner, tolerance it has at least), one after the other, so that only one set of weights is open."""
    if built is None:
        yield "onnx", onnx_runner(export(model, folder / "onnx"), model.task.output), 0.0
        built = build(model, folder / "cpu")
    if not isinstance(built, (str, Path)):
        session = built.session
    elif (Path(built) / "monograph.json").exists():
        from .backends.onnxruntime import open as open_session

        session = open_session(built)
    else:
        yield "onnx", onnx_runner(Path(built), model.task.output), 0.0
        return
    from .backends.onnxruntime.quantized import narrow_products

    allowed = NARROW if narrow_products(session.folder) else 0.0
    yield "ort", run_runner(session, model.task.output), allowed
    if session.contract.kind == "decoder":
        yield "ort session", step_runner(session, model), allowed


def run_runner(session: Session, output: str) -> Runner:
    """A built folder through `Session.run`: any mask, caches passed on by the caller."""

    def run(inputs: Inputs, spans: Spans) -> Array:
        source = {k: inputs[k] for k in inputs if "decoder_input_ids" in inputs and not k.startswith("decoder_")}
        cache: dict[str, Array] = {}
        parts: list[Array] = []
        for start, stop in spans:
            results = session.run({**source, **window(inputs, start, stop), **cache})
            cache = {k.replace("present.", "past_key_values."): v for k, v in results.items() if "present." in k}
            cache |= {k.replace("present_", "past_"): v for k, v in results.items() if k.startswith("present_state.")}
            parts.append(results[output])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    return run


def step_runner(session: Session, model: Model) -> Runner:
    """A built folder as it generates: prompts without their padding, shared buffers, one token a step.

    Logits of the first span come from prompts of 1, 2, 3... tokens; those of the others from single steps.
    """

    def run(inputs: Inputs, spans: Spans) -> Array:
        lead = "decoder_" if "decoder_input_ids" in inputs else ""
        ids, mask = inputs[f"{lead}input_ids"], inputs[f"{lead}attention_mask"] != 0
        rows = [list(r[m]) for r, m in zip(ids, mask, strict=True)]
        prompts = np.maximum(mask[:, : spans[0][1]].sum(1), 1)
        found: Array = np.zeros((*ids.shape, _vocabulary(model)), np.float32)

        def keep(logits: Array, lengths: Array, longest: Array) -> None:
            for row in np.flatnonzero(lengths <= longest):
                found[row, np.flatnonzero(mask[row])[lengths[row] - 1]] = logits[row]

        if lead:
            session.encode({k: v for k, v in inputs.items() if not k.startswith("decoder_")})
        for n in range(1, int(prompts.max()) + 1):
            lengths = np.minimum(prompts, n)
            tokens = np.array([(r + [0] * n)[:n] for r in rows])
            keep(session.prefill(tokens, lengths), lengths, prompts)
        counts = np.array([len(r) for r in rows])
        for n in range(1, int((counts - prompts).max()) + 1):
            tokens = np.array([r[p + n - 1] if p + n <= len(r) else 0 for r, p in zip(rows, prompts, strict=True)])
            keep(session.step(tokens), prompts + n, counts)
        return found

    return run


def _vocabulary(model: Model) -> int:
    size = model.graph().outputs["logits"].shape[-1]
    assert isinstance(size, int)
    return size


def onnx_runner(folder: Path, output: str) -> Runner:
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

    def run(inputs: Inputs, spans: Spans) -> Array:
        source = {} if encoder is None else _call(encoder, inputs)
        state = first_state(main, inputs["input_ids"].shape[0]) | next_state(source)
        parts: list[Array] = []
        for start, stop in spans:
            results = _call(main, {**inputs, **source, **window(inputs, start, stop), **state})
            state |= next_state(results)
            parts.append(results[output])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    return run


def _call(session: Any, inputs: Inputs) -> dict[str, Array]:
    names = [o.name for o in session.get_outputs()]
    given = {i.name: inputs[i.name] for i in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


def window(inputs: Inputs, start: int, stop: int) -> dict[str, Array]:
    """Inputs for tokens start..stop of a decoder; its mask over keys covers the past too, the source stays whole."""
    prefix = "decoder_" if "decoder_input_ids" in inputs else ""
    mask = f"{prefix}attention_mask"
    sliced = {k: v[:, start:stop] for k, v in inputs.items() if k.startswith(prefix) and k != mask}
    return sliced | ({mask: inputs[mask][:, :stop]} if mask in inputs else {})
