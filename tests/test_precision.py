"""16-bit floats: what stays wide, and that no weights make what is built infinite or far off."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
from cuda_models import SUBJECTS, compared
from monograph.backends.onnxruntime import build
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.onnxruntime.rehosted import rehosted
from monograph.backends.target import Target
from monograph.frontends.dsl import Model
from monograph.ir.errors import LoweringError, MonographError
from monograph.ir.ops.elementwise import Cast
from monograph.ir.ops.norm import AddRMSNorm
from monograph.ir.types import DType, bf16, f16, f32
from monograph.ir.verify import verify
from monograph.ir.weights import Weights
from monograph.passes.differential import CASES, difference, random_params
from monograph.passes.observe import observe
from monograph.passes.pipelines import optimize
from monograph.passes.precision import narrowed
from monograph.passes.residual import shrink, streams_of
from small_models import FAMILIES, small

Params = dict[str, Any]


def changed(name: str, **factors: float) -> Model:
    """A subject some of whose weights are larger: by a part of their names."""
    model = SUBJECTS[name]()
    params = random_params(model.graph())
    for part, factor in factors.items():
        own = [k for k in params if part in k.replace(".", "_")]
        assert own, part
        params |= {k: params[k] * np.float32(factor) for k in own}
    return dataclasses.replace(model, weights=Weights.of(params))


def decided(model: Model, dtype: DType = f16, **settings: Any) -> tuple[Any, Any]:
    graph, _ = optimize(model.graph(), "decode")
    assert model.weights is not None
    new, report = narrowed(graph, dtype, model.weights, 64, **settings)
    verify(new)
    return new, report


EXTREMES: dict[str, tuple[str, dict[str, float], str]] = {
    "residual stream of 1e5": ("llama", {"down_proj": 3e4}, "the residual stream may reach"),
    "attention that adds 1e5": ("llama", {"o_proj": 3e4}, "the residual stream may reach"),
    "gates and ups": ("llama", {"gate_proj": 300, "up_proj": 300}, "mul meets numbers of up to"),
    "scores": ("llama", {"q_proj": 300, "k_proj": 300}, "attention scores may reach"),
    "an embedding beyond f16": ("llama", {"embed_tokens": 1e5}, "embedding meets numbers of up to"),
    "logits beyond f16": ("llama", {"model_norm": 1e5}, "of its operand and made larger in f32"),
    "values of the cache": ("llama", {"v_proj": 1e5}, "cache_read meets numbers of up to"),
    "biases before attention": ("gpt2", {"c_attn_bias": 1e6}, "slice meets numbers of up to"),
    "biases after it": ("gpt2", {"c_proj_bias": 1e6}, "the residual stream may reach"),
    "norms after the products": ("gemma3_text", {"down_proj": 3e4}, "rms_norm meets numbers of up to"),
    "everything": ("llama", {"down_proj": 3e4, "gate_proj": 300, "up_proj": 300}, "the residual stream may reach"),
}


@pytest.mark.parametrize("extreme", EXTREMES)
def test_f16_is_near_f32_whatever_the_weights_are(extreme: str, tmp_path: Path) -> None:
    name, factors, said = EXTREMES[extreme]
    model = changed(name, **factors)
    _, report = decided(model)
    assert any(said in line for line in report.decisions), report.decisions
    found = compared(model, "f16", tmp_path / "out", CASES)
    assert found.parity.passed, [r for r in found.parity.rows if not r.passed][:3]


def test_a_row_without_any_key_is_finite_and_the_others_are_right(tmp_path: Path) -> None:
    for name in ("llama", "gpt2", "small window", "small bias", "bert"):
        model = changed(name)
        build(model, None, tmp_path / name, Target("cuda", f16))
        session = open_session(rehosted(tmp_path / name, tmp_path / f"{name}-here"), threads=1)
        rng = np.random.default_rng(0)
        ids, mask = rng.integers(0, 40, (3, 6)), np.ones((3, 6), np.int64)
        mask[1], mask[2, :2] = 0, 0
        given = {"input_ids": ids, "attention_mask": mask}
        found = session.run(given)
        assert all(np.isfinite(x).all() for x in found.values()), name
        wanted = session.run({k: v[[0, 2]] for k, v in given.items()})
        for k in [k for k, x in found.items() if x.shape[:2] == mask.shape]:
            off = np.abs(found[k][[0, 2]].astype(np.float32) - wanted[k].astype(np.float32))
            assert off[mask[[0, 2]] == 1].max() < 0.01, (name, k)


def test_what_fits_by_its_weights_is_narrow() -> None:
    graph, report = decided(changed("llama"))
    assert report.wide <= 1 and report.decisions == []
    assert {v.dtype for v in graph.params.values()} == {f16}
    assert {s.type.dtype for s in graph.slots} == {f16}
    assert all(graph.inputs[s.input].type == s.type for s in graph.slots)


def test_a_wide_stream_reads_narrow_products() -> None:
    graph, report = decided(changed("llama", down_proj=3e6))
    norms = [n for n in graph if isinstance(n.op, AddRMSNorm)]
    assert norms and all(n.outputs[1].dtype == f32 and n["w"].dtype == f32 for n in norms)
    assert {graph.params[k].dtype for k in graph.params if "_proj" in k and "down" not in k} == {f16}
    assert report.wide > 0 and "may reach" in str(report.lines())


def test_a_stream_that_is_a_little_too_large_is_kept_smaller() -> None:
    graph, report = decided(changed("llama", down_proj=3e4))
    norms = [n for n in graph if isinstance(n.op, AddRMSNorm)]
    assert norms and all(n.outputs[1].dtype == f16 and n.attributes["eps"] < 1e-8 for n in norms)
    assert report.decisions == ["the residual stream may reach 6.52e+05: it is kept at 1/32 of its size"]
    casts = [n for n in graph if isinstance(n.op, Cast) and n.value("x").dtype == f16]
    assert casts == [], "no value on the way leaves its type"


@pytest.mark.parametrize("family", FAMILIES)
def test_smaller_streams_compute_the_same(family: str) -> None:
    """Powers of two are exact: only the sums of squares in norms are rounded elsewhere."""
    for pipeline in ("encode", "clean"):
        graph, _ = optimize(small(family).graph(), pipeline)
        for steps in (3, -2):
            new = graph.copy()
            streams = streams_of(new)
            for members in streams:
                shrink(new, members, steps)
            verify(new)
            assert difference(graph, new, tolerance=1e-6, cases=CASES[:3]) is None


def test_long_streams_stay_wide_in_bf16() -> None:
    model = SUBJECTS["llama"]()
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, layers=6))
    model = dataclasses.replace(model, weights=Weights.of(random_params(model.graph())))
    _, report = decided(model, bf16)
    assert any("12 sums would be off by 1.4%" in line for line in report.decisions)
    assert not decided(model, f16)[1].decisions


def test_a_run_shows_what_bounds_cannot() -> None:
    """Bounds of deep products are far off; what a run shows, times a margin, decides, and without one they do."""
    model = changed("llama", gate_proj=20, up_proj=20)
    blind, seen = decided(model, calibrate=False)[1], decided(model)[1]
    assert seen.seen > blind.seen == 0 and blind.wide > seen.wide


def test_distances_that_are_exponentiated_stay_exact() -> None:
    """ALiBi's bias reaches 2000, where f16 does not tell 2000.5 from 2000; relative buckets do not."""
    model = SUBJECTS["bloom"]()
    model = dataclasses.replace(model, weights=Weights.of(random_params(model.graph())))
    assert any("bias of attention is exponentiated" in line for line in decided(model)[1].decisions)
    assert not any("bias" in line for line in decided(changed("t5"))[1].decisions)


def test_one_weight_is_in_memory_at_a_time() -> None:
    model = changed("llama")
    assert model.weights is not None
    graph, _ = optimize(model.graph(), "decode")
    found = observe(graph, model.weights)
    assert {v for n in graph for v in n.outputs if v.dtype.is_float} == found.values.keys() - set(graph.inputs.values())
    assert all(np.isfinite(r.most) for r in found.values.values())


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_exports_and_builds_take_a_dtype(dtype: str, tmp_path: Path) -> None:
    model = changed("llama")
    mg.export(model, tmp_path / "onnx", dtype=dtype)
    if dtype != "bf16":
        assert mg.verify(model, tmp_path / "onnx", torch=False).passed
        engine = mg.build(model, tmp_path / "cpu", dtype=dtype, threads=1)
        assert mg.verify(model, engine, torch=False).passed
        assert engine.report is not None and (engine.report.precision is None) == (dtype == "f32")


def test_types_that_a_target_lacks_are_refused_with_what_there_is() -> None:
    with pytest.raises(LoweringError, match=r"(?s)cpu has no kernel that multiplies matrices in bf16.*f64, f32, f16"):
        mg.build(changed("llama"), dtype="bf16")
    with pytest.raises(MonographError, match="dtype is 'fp16', expected one of f64, f32, f16, bf16, did you mean"):
        mg.build(changed("llama"), dtype="fp16")


def test_a_plain_graph_is_narrowed_too(tmp_path: Path) -> None:
    model = changed("gpt2")
    graph, weights = model.graph(), model.weights
    report = build(graph, weights, tmp_path / "out", Target("cuda", f16), max_positions=32)
    assert report.precision is not None and report.precision.proved > 20
    own = build(model.graph(f16), weights, tmp_path / "own", Target("cuda", f16))
    assert own.precision is None, "a graph in 16 bits says itself what is wide"
