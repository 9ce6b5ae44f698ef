"""Every model family, small and with random weights, as portable ONNX in ONNX Runtime against the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monograph import frontends
from monograph.backends.onnx import PORTABLE, lower
from monograph.frontends.dsl import Model, load_family
from monograph.ir import Graph, interpret
from monograph.ir.weights import Weights
from monograph.passes import pipelines
from monograph.passes.differential import CASES, Case, difference, random_params, sample_inputs
from test_onnx_ops import run
from test_pipelines import OPS, random_graph

FAMILIES = sorted(p.stem for p in (Path(frontends.__file__).parent / "models").glob("[!_]*.py"))
SMALL = {"vocab": 50, "dim": 16, "heads": 4, "kv_heads": 2, "ffn": 24, "inner": 24, "layers": 2, "decoder_layers": 2}

Arrays = Mapping[str, np.ndarray]


def small(family: str) -> Model:
    """A model of the family with the sizes that its config shares with SMALL."""
    found = load_family(family)
    fields = {f.name for f in dataclasses.fields(found.config_class)}
    return found(**{k: v for k, v in SMALL.items() if k in fields})


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
    rows = seen.astype(bool) if wanted.shape[:2] == seen.shape else np.ones(wanted.shape[:1], bool)
    scale = max(1.0, float(np.abs(wanted[rows]).max()))
    np.testing.assert_allclose(got[rows], wanted[rows], rtol=0, atol=2e-5 * scale, err_msg=what)


def first_pasts(graph: Graph, batch: int, encoded: Arrays) -> dict[str, np.ndarray]:
    """Empty caches, and recurrent states that are zero or what an encoder left behind."""
    pasts = {k: v.type.substitute({"B": batch, "P": 0}).shape for k, v in graph.inputs.items() if k.startswith("past_")}
    zeros = {k: np.zeros(s, np.float32) for k, s in pasts.items()}  # type: ignore[arg-type]
    return {k: encoded.get(k.replace("past_", "initial_"), x) for k, x in zeros.items()}


def window(inputs: Arrays, prefix: str, start: int, stop: int) -> dict[str, np.ndarray]:
    """The inputs of tokens start..stop; a mask over keys keeps its past."""
    names = {f"{prefix}{k}": k for k in ("input_ids", "position_ids", "attention_mask")}
    given = {k: base for k, base in names.items() if k in inputs}
    return {k: inputs[k][:, (0 if base == "attention_mask" else start) : stop] for k, base in given.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_stateless(family: str) -> None:
    plain = small(family).graph()
    params = random_params(plain)
    call = session_of(pipelines.encode(plain), params)
    for case in CASES[:5]:
        inputs = sample_inputs(plain, case)
        seen = inputs.get("decoder_attention_mask", inputs["attention_mask"])
        got = call(inputs)
        for name, wanted in interpret(plain, inputs, params).items():
            assert_close(got[name], wanted, seen, f"{name}, {case}")


@pytest.mark.parametrize("family", FAMILIES)
def test_from_primitives(family: str) -> None:
    """Nothing but primitives, as an importer would bring them before anything is raised."""
    plain = small(family).graph()
    flat, params = pipelines.decompose(plain), random_params(plain)
    inputs = sample_inputs(plain, CASES[4])
    got = run(lower(flat, Weights.of(params)), inputs)
    for name, wanted in interpret(plain, inputs, params).items():
        seen = inputs.get("decoder_attention_mask", inputs["attention_mask"])
        assert_close(got[name], wanted, seen, name)


@pytest.mark.parametrize("family", [f for f in FAMILIES if load_family(f).task in ("causal-lm", "seq2seq-lm")])
def test_generation(family: str) -> None:
    """Prefill, then token by token with a growing cache, equals the full forward; encoder states are made once."""
    model = small(family)
    plain = model.graph()
    params = random_params(plain)
    two_parts = model.task == "seq2seq-lm"
    encoder, decoder = pipelines.seq2seq(plain) if two_parts else (None, pipelines.decode(plain))
    encode = session_of(encoder, params) if encoder is not None else None
    step = session_of(decoder, params)
    prefix = "decoder_" if two_parts else ""
    for case in (Case("all-ones", 1), *(Case(m, 3) for m in ("right-padded", "left-padded", "holed"))):
        inputs = sample_inputs(plain, case)
        fixed: dict[str, Any] = {**encode(inputs), "attention_mask": inputs["attention_mask"]} if encode else {}
        pasts = first_pasts(decoder, case.batch, fixed)
        parts: list[np.ndarray] = []
        for start, stop in ((0, 4), (4, 5), (5, 7)):
            got = step({**fixed, **window(inputs, prefix, start, stop), **pasts})
            named = {k.replace("present.", "past_key_values.").replace("present_", "past_"): v for k, v in got.items()}
            pasts = {k: v for k, v in named.items() if k in pasts}
            parts.append(got["logits"])
        wanted = interpret(plain, inputs, params)["logits"]
        assert_close(np.concatenate(parts, axis=1), wanted, inputs[f"{prefix}attention_mask"], str(case))


@pytest.mark.parametrize("family", FAMILIES)
def test_rewrites_keep_the_numbers_on_every_hard_input(family: str) -> None:
    model = small(family)
    graph = pipelines.decode(model.graph()) if model.task == "causal-lm" else pipelines.encode(model.graph())
    report = PORTABLE.run(graph, check=difference)
    assert report.misses == []


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
