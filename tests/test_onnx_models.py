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
from monograph.ir.slots import TARGETS, TOKENS
from monograph.ir.weights import Weights
from monograph.passes import pipelines
from monograph.passes.differential import CASES, Case, difference, newest, random_params, sample_inputs
from monograph.passes.encoder_decoder import is_separable, separate
from test_onnx_ops import run
from test_pipelines import OPS, random_graph

FAMILIES = sorted(p.stem for p in (Path(frontends.__file__).parent / "models").glob("[!_]*.py"))
SMALL = {"vocab": 50, "dim": 16, "heads": 4, "kv_heads": 2, "ffn": 24, "inner": 24, "layers": 2, "decoder_layers": 2}
OWN: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v3": {
        "expert_ffn": 12,
        "experts": 4,
        "chosen": 2,
        "groups": 2,
        "chosen_groups": 1,
        "dense": 1,
        "q_rank": 8,
        "rank": 12,
        "turned": 4,
        "plain": 4,
        "values": 6,
        "kv_heads": 4,
    },
    "gemma2": {"head_dim": 4, "window": 3},
    "gemma3_text": {"head_dim": 4, "window": 3},
    "gptj": {"rotary_dim": 4},
    "mamba2": {"width": 8, "size": 6, "groups": 2, "taps": 3},
    "mistral": {"window": 3},
    "vit": {"image": 8, "patch": 4},
    "whisper": {"decoder_heads": 4, "decoder_ffn": 24, "mels": 6, "source_positions": 5},
}
"""Settings of families that have others than SMALL."""

Arrays = Mapping[str, np.ndarray]


def small(family: str) -> Model:
    """A model of the family with the sizes that its config shares with SMALL."""
    found = load_family(family)
    fields = {f.name for f in dataclasses.fields(found.config_class)}
    return found(**{k: v for k, v in {**SMALL, **OWN.get(family, {})}.items() if k in fields})


def seen(inputs: Arrays, y: np.ndarray) -> np.ndarray:
    """Which positions of an output mean something: those that the mask of its tokens keeps."""
    mask = inputs.get(TARGETS.mask, inputs.get(TOKENS.mask))
    return np.ones(y.shape[:2]) if mask is None else mask


def session_of(graph: Graph, params: Arrays) -> Callable[[Arrays], dict[str, np.ndarray]]:
    """A function that runs the graph in ONNX Runtime on whatever inputs it needs."""
    proto = onnx_ir.to_proto(lower(graph, Weights.of(params)))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = [o.name for o in session.get_outputs()]
    inputs = [i.name for i in session.get_inputs()]
    return lambda given: dict(zip(outputs, session.run(outputs, {k: given[k] for k in inputs}), strict=True))


def assert_close(got: np.ndarray, wanted: np.ndarray, kept: np.ndarray, what: str) -> None:
    """Equal at the tokens that the mask keeps, within 1e-5 of the largest value."""
    rows = kept.astype(bool) if wanted.shape[:2] == kept.shape else np.ones(wanted.shape[:1], bool)
    scale = max(1.0, float(np.abs(wanted[rows]).max()))
    np.testing.assert_allclose(got[rows], wanted[rows], rtol=0, atol=2e-5 * scale, err_msg=what)


def nothing_read(graph: Graph, batch: int, encoded: Arrays) -> dict[str, np.ndarray]:
    """What slots hold before the first call: nothing, zeros, or what an encoder left for them."""
    sizes = {"B": batch, **{s: 0 for slot in graph.slots for s in slot.type.symbols if s.startswith("P")}}
    given = {s.input: s.first for s in graph.slots}
    return {
        slot.input: encoded[given[slot.input]]
        if given[slot.input] in encoded
        else np.zeros(slot.type.substitute(sizes).shape, np.float32)  # type: ignore[arg-type]
        for slot in graph.slots
    }


def window(graph: Graph, inputs: Arrays, start: int, stop: int) -> dict[str, np.ndarray]:
    """The inputs of tokens start..stop; a mask over keys keeps its past."""
    stream = graph.stream
    assert stream is not None
    given = {k: inputs[k][:, start:stop] for k in stream.names if k in inputs}
    return {**inputs, **given, **({stream.mask: inputs[stream.mask][:, :stop]} if stream.mask in inputs else {})}


@pytest.mark.parametrize("family", FAMILIES)
def test_stateless(family: str) -> None:
    plain = small(family).graph()
    params = random_params(plain)
    call = session_of(pipelines.encode(plain), params)
    for case in CASES[:5]:
        inputs = sample_inputs(plain, case)
        got = call(inputs)
        for name, wanted in interpret(plain, inputs, params).items():
            assert_close(got[name], wanted, seen(inputs, wanted), f"{name}, {case}")


@pytest.mark.parametrize("family", FAMILIES)
def test_from_primitives(family: str) -> None:
    """Nothing but primitives, as an importer would bring them before anything is raised."""
    plain = small(family).graph()
    flat, params = pipelines.decompose(plain), random_params(plain)
    inputs = sample_inputs(plain, CASES[4])
    got = run(lower(flat, Weights.of(params)), inputs)
    for name, wanted in interpret(plain, inputs, params).items():
        assert_close(got[name], wanted, seen(inputs, wanted), name)


@pytest.mark.parametrize("family", [f for f in FAMILIES if load_family(f).task.generates])
def test_generation(family: str) -> None:
    """Prefill, then token by token over what is remembered, equals the full forward; an encoder runs once."""
    plain = small(family).graph()
    params = random_params(plain)
    whole = pipelines.decode(plain)
    encoder, decoder = separate(whole) if is_separable(whole) else (None, whole)
    encode = session_of(encoder, params) if encoder is not None else None
    step = session_of(decoder, params)
    for case in (Case("all-ones", 1), *(Case(m, 3) for m in ("right-padded", "left-padded", "holed"))):
        inputs = sample_inputs(plain, case)
        made = encode(inputs) if encode else {}
        remembered = nothing_read(decoder, case.batch, made)
        parts: list[np.ndarray] = []
        for start, stop in ((0, 4), (4, 5), (5, 7)):
            got = step({**window(decoder, inputs, start, stop), **remembered})
            remembered |= {s.input: newest(got[s.output], s) for s in decoder.slots if s.output}
            parts.append(got["logits"])
        wanted = interpret(plain, inputs, params)["logits"]
        assert_close(np.concatenate(parts, axis=1), wanted, seen(inputs, wanted), str(case))


@pytest.mark.parametrize("family", FAMILIES)
def test_rewrites_keep_the_numbers_on_every_hard_input(family: str) -> None:
    model = small(family)
    graph = pipelines.decode(model.graph()) if model.task == "causal-lm" else pipelines.encode(model.graph())
    report = PORTABLE.run(graph, check=difference)
    assert all("softcap" in str(miss) for miss in report.misses)


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
