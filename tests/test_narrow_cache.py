"""Keys and values in 8 bits: the pass, the kernel against the reference in codes, every mask, scales and bounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import onnx
import pytest
from monograph import narrowing
from monograph.backends.onnxruntime import build
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.onnxruntime.choices import CHOICES
from monograph.backends.onnxruntime.contract import Contract
from monograph.frontends.dsl import Model
from monograph.ir import Graph, interpret, verify
from monograph.ir.errors import LoweringError
from monograph.ir.types import i8
from monograph.ir.weights import Weights
from monograph.passes.differential import MASKS, attention_mask, newest, random_params
from monograph.passes.narrow_cache import narrow_cache, scale_of
from monograph.passes.pipelines import decode
from ort_models import MODELS, VOCAB
from small_models import small

Array = np.ndarray[Any, Any]
KINDS = ("llama", "gpt2", "window", "norms", "narrow", "bias")


def parts(kind: str) -> tuple[Model, Graph, dict[str, Array]]:
    """(the model with scales, its graph in codes, all parameters)"""
    model = MODELS[kind]()
    graph = decode(model.graph())
    rng = np.random.default_rng(0)
    scales = {
        scale_of(s.input): (rng.uniform(1, 2, (s.type.shape[1], s.type.shape[3])) * 3 / 127).astype(np.float32)
        for s in graph.slots
    }
    params = random_params(model.graph()) | scales
    assert narrow_cache(graph, params) == len(graph.slots) == 4
    return replace(model, weights=Weights.of(params)), verify(graph), params


class Reference:
    """The graph in codes, in NumPy, token by token."""

    def __init__(self, graph: Graph, params: dict[str, Array], rows: int) -> None:
        self.graph, self.params = graph, params
        self.past: dict[str, Array] = {}
        for s in graph.slots:
            shape = tuple(rows if i == 0 else 0 if i == s.axis else d for i, d in enumerate(s.type.shape))
            self.past[s.input] = np.zeros(shape, np.int8)  # type: ignore[arg-type]

    def read(self, ids: Array, mask: Array, positions: Array) -> Array:
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        inputs = {k: v for k, v in given.items() if k in self.graph.inputs}
        found = interpret(self.graph, {**inputs, **self.past}, self.params)
        self.past = {s.input: newest(found[s.output], s) for s in self.graph.slots}
        return found["logits"]


@pytest.mark.parametrize("kind", KINDS)
def test_sessions_read_prompts_and_steps_as_the_reference_in_codes(kind: str, tmp_path: Path) -> None:
    model, graph, params = parts(kind)
    report = build(model, None, tmp_path / "m")
    assert all(s.type.dtype is i8 for s in report.contract.slots)
    assert report.fused == (0 if kind == "bias" else 2)
    session = open_session(report.folder, threads=1)
    ids = np.random.default_rng(1).integers(0, VOCAB, (2, 12))
    reference = Reference(graph, params, 2)
    columns = np.tile(np.arange(12), (2, 1))

    def expected(start: int, stop: int) -> Array:
        return reference.read(ids[:, start:stop], np.ones((2, stop), np.int64), columns[:, start:stop])[:, -1]

    wanted = expected(0, 7)
    np.testing.assert_allclose(session.prefill(ids[:, :7], np.array([7, 7])), wanted, atol=1e-5)
    for i in range(7, 10):
        np.testing.assert_allclose(session.step(ids[:, i]), expected(i, i + 1), atol=1e-5)
    np.testing.assert_allclose(session.append(ids[:, 10:]), expected(10, 12), atol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kind", ["llama", "window"])
def test_any_mask(kind: str, mask: str, tmp_path: Path) -> None:
    model, graph, params = parts(kind)
    session = open_session(build(model, None, tmp_path / "m").folder, threads=1)
    ids, keep = np.random.default_rng(2).integers(0, VOCAB, (3, 9)), attention_mask(mask, 3, 9)
    positions = np.maximum(np.cumsum(keep, 1) - 1, 0)
    wanted = Reference(graph, params, 3).read(ids, keep, positions)
    given = {"input_ids": ids, "attention_mask": keep, "position_ids": positions}
    got = session.run({k: v for k, v in given.items() if k in graph.inputs})["logits"]
    np.testing.assert_allclose(got[keep != 0], wanted[keep != 0], atol=1e-5)


def test_the_kernel_gets_codes_and_a_scale_a_channel(tmp_path: Path) -> None:
    model, _, params = parts("llama")
    folder = build(model, None, tmp_path / "m").folder
    nodes = [n for n in onnx.load(folder / "model.onnx").graph.node if n.op_type == "GroupQueryAttention"]
    said = {a.name: onnx.helper.get_attribute_value(a) for a in nodes[0].attribute}
    assert said["k_quant_type"] == said["v_quant_type"] == b"PER_CHANNEL" and said["kv_cache_bit_width"] == 8
    assert len(nodes) == 2 and all(len(n.input) == 14 for n in nodes)
    stored = onnx.load(folder / "model.onnx")
    shapes = {tuple(t.dims) for t in stored.graph.initializer}
    assert params["past_key_values.0.key.scale"].shape in shapes


def test_a_slot_without_scales_stays_and_mixed_slots_are_not_one_kernel() -> None:
    graph = decode(MODELS["llama"]().graph())
    before = str(graph)
    assert narrow_cache(graph, ()) == 0 and str(graph) == before
    assert narrow_cache(graph, {scale_of("past_key_values.1.key"), scale_of("past_key_values.1.value")}) == 2
    assert [s.type.dtype is i8 for s in graph.slots] == [False, False, True, True]
    verify(graph)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "deepseek_v3"])
def test_a_build_calibrates_measures_and_says_so(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrowing, "BOUND", 0.05)
    model = small(family)
    model = replace(model, weights=Weights.of(random_params(model.graph())))
    asked = mg.Quantization(weights="", cache="int8")
    with mg.build(model, tmp_path / "m", quantize=asked, threads=1) as engine:
        contract = engine.session.contract
        assert "slots in 8 bits with a scale a channel from what the model writes itself" in contract.cache
        assert Contract.read(tmp_path / "m").cache == contract.cache
        assert any(s.type.dtype is i8 for s in contract.slots)
        ids = np.random.default_rng(0).integers(0, 50, (1, 24))
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(24)[None]}
        graph = model.graph()
        full = interpret(graph, {k: v for k, v in given.items() if k in graph.inputs}, random_params(graph))
        off = np.abs(engine.session.run({"input_ids": ids})["logits"] - full["logits"]).max()
        assert 0 < off < 0.1 * np.abs(full["logits"]).max()


def test_a_cost_beyond_the_bound_is_refused_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrowing, "BOUND", 1e-9)
    model = small("llama")
    model = replace(model, weights=Weights.of(random_params(model.graph())))
    asked = mg.Quantization(weights="", cache="int8")
    with pytest.raises(LoweringError, match=r"8 bits cost .* nats, and 1e-09 are allowed"):
        mg.build(model, tmp_path / "m", quantize=asked)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["bert", "mamba2", "t5", "gru_lm"])
def test_models_without_such_a_cache_are_refused(family: str, tmp_path: Path) -> None:
    model = small(family)
    model = replace(model, weights=Weights.of(random_params(model.graph())))
    with pytest.raises(LoweringError, match="has no keys and values"):
        mg.build(model, tmp_path / "m", quantize=mg.Quantization(weights="", cache="int8"))
    with pytest.raises(LoweringError, match="built for cpu in f32, not for cuda f16"):
        mg.build(model, tmp_path / "m", target="cuda", quantize=mg.Quantization(weights="", cache="int8"))


def test_other_choices_of_attention_read_codes_too(tmp_path: Path) -> None:
    model, graph, params = parts("llama")
    ids = np.random.default_rng(3).integers(0, VOCAB, (1, 8))
    wanted = Reference(graph, params, 1).read(ids, np.ones((1, 8), np.int64), np.arange(8)[None])[:, -1]
    for i, change in enumerate(
        ({"shared_cache": False}, {"shared_cache": False, "attention": "parts"}, {"rotary_table": 0})
    ):
        folder = build(model, None, tmp_path / str(i), choices=replace(CHOICES["cpu"], **change)).folder
        session = open_session(folder, threads=1)
        session.prefill(ids[:, :7], np.array([7]))
        np.testing.assert_allclose(session.step(ids[:, 7]), wanted, atol=1e-5)
