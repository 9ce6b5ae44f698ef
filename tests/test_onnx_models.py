"""Every model family, small and with random weights, as portable ONNX in ONNX Runtime against the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monograph.backends.onnx import PORTABLE, lower
from monograph.frontends.dsl import Model, load_family
from monograph.ir import Graph, interpret
from monograph.ir.slots import TOKENS, Growth, Slot
from monograph.ir.weights import Weights
from monograph.parity import inputs_of, mask_of, reads_mask, streams_of
from monograph.passes import pipelines
from monograph.passes.differential import CASES, Case, difference, random_params, sample_inputs, window
from monograph.portable import next_state
from small_models import FAMILIES, small
from test_onnx_ops import run
from test_pipelines import OPS, random_graph

Arrays = Mapping[str, np.ndarray]


def session_of(graph: Graph, params: Arrays) -> Callable[[Arrays], dict[str, np.ndarray]]:
    """A function that runs the graph in ONNX Runtime on whatever inputs it needs."""
    proto = onnx_ir.to_proto(lower(graph, Weights.of(params)))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = [o.name for o in session.get_outputs()]
    inputs = [i.name for i in session.get_inputs()]
    return lambda given: dict(zip(outputs, session.run(outputs, {k: given[k] for k in inputs}), strict=True))


def assert_close(got: np.ndarray, wanted: np.ndarray, seen: np.ndarray, what: str) -> None:
    """Equal at the tokens that the mask keeps, within 1e-5 of the largest value."""
    rows = seen.astype(bool) if wanted.shape[: seen.ndim] == seen.shape else np.ones(wanted.shape[:1], bool)
    scale = max(1.0, float(np.abs(wanted[rows]).max()))
    np.testing.assert_allclose(got[rows], wanted[rows], rtol=0, atol=2e-5 * scale, err_msg=what)


def seen_in(graph: Graph, case: Case) -> np.ndarray:
    """The tokens of the main stream that count."""
    stream = graph.stream or TOKENS
    return mask_of(case) if reads_mask(graph, stream) else np.ones((case.batch, case.length), np.int64)


def told(graph: Graph, cases: Sequence[Case], model: Model) -> list[Case]:
    """The cases whose masks the model can be told."""
    masked = any(reads_mask(graph, s) for s in streams_of(model.task, graph))
    return [c for c in cases if masked or c.mask == "all-ones"]


@pytest.mark.parametrize("family", FAMILIES)
def test_stateless(family: str) -> None:
    model = small(family)
    plain = model.graph()
    params = random_params(plain)
    call = session_of(pipelines.encode(plain), params)
    for case in told(plain, CASES[:5], model):
        inputs = inputs_of(model.task, plain, case)
        got = call(inputs)
        for name, wanted in interpret(plain, inputs, params).items():
            assert_close(got[name], wanted, seen_in(plain, case), f"{name}, {case}")


@pytest.mark.parametrize("family", FAMILIES)
def test_from_primitives(family: str) -> None:
    """Nothing but primitives, as an importer would bring them before anything is raised."""
    model = small(family)
    plain = model.graph()
    flat, params = pipelines.decompose(plain), random_params(plain)
    case = told(plain, CASES[4:0:-1], model)[0]
    inputs = inputs_of(model.task, plain, case)
    got = run(lower(flat, Weights.of(params)), inputs)
    for name, wanted in interpret(plain, inputs, params).items():
        assert_close(got[name], wanted, seen_in(plain, case), name)


@pytest.mark.parametrize("family", [f for f in FAMILIES if load_family(f).task.generates])
def test_generation(family: str) -> None:
    """A prompt, then a token, then two with what is remembered equal the full forward; an encoder runs once."""
    model = small(family)
    plain = model.graph()
    params, output = random_params(plain), model.task.output
    encoder, decoder = pipelines.seq2seq(plain) if model.task.separated else (None, pipelines.decode(plain))
    encode = session_of(encoder, params) if encoder is not None else None
    step, slots = session_of(decoder, params), decoder.slots
    assert slots
    cases = (Case("all-ones", 1), *(Case(m, 3) for m in ("right-padded", "left-padded", "holed")))
    for case in told(plain, cases, model):
        inputs = inputs_of(model.task, plain, case)
        fixed: dict[str, Any] = encode(inputs) if encode else {}
        state = {s.input: np.zeros(empty(s, case.batch), np.float32) for s in slots if s.growth is not Growth.once}
        state |= next_state(fixed, slots)
        parts: list[np.ndarray] = []
        for start, stop in ((0, 4), (4, 5), (5, 7)):
            got = step({**fixed, **window(plain, inputs, start, stop), **state})
            state |= next_state(got, slots)
            parts.append(got[output])
        wanted = interpret(plain, inputs, params)[output]
        assert_close(np.concatenate(parts, axis=1), wanted, seen_in(plain, case), str(case))


def empty(slot: Slot, batch: int) -> tuple[int, ...]:
    return tuple(batch if i == 0 else d if isinstance(d, int) else 0 for i, d in enumerate(slot.type.shape))


@pytest.mark.parametrize("family", FAMILIES)
def test_rewrites_keep_the_numbers_on_every_hard_input(family: str) -> None:
    model = small(family)
    made = pipelines.decode if model.task.generates and not model.task.separated else pipelines.encode
    graph = made(model.graph())
    report = PORTABLE.run(graph, check=difference)
    # The standard op has no soft caps that all runtimes put in the same place.
    assert [m for m in report.misses if "softcap" not in m.reason] == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_random_graphs(steps: list[tuple[str, int, int]]) -> None:
    graph = random_graph(steps)
    params, inputs = random_params(graph), sample_inputs(graph, CASES[2])
    wanted = interpret(graph, inputs, params)
    for variant in (graph, pipelines.decompose(graph)):
        got = run(lower(variant, Weights.of(params)), inputs)
        for name, value in wanted.items():
            assert_close(got[name], value, np.ones(value.shape[:2]), name)
