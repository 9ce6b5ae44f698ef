"""Weights in fewer bits: settings, methods against ONNX Runtime's and llama.cpp's own, plans and their reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import monograph as mg
import numpy as np
import pytest
from monograph.frontends.dsl import load_family
from monograph.ir.encoded import Encoded
from monograph.ir.encodings import Encoding, q4_0
from monograph.ir.errors import ConfigError, MonographError, WeightsError
from monograph.ir.tensors import ArrayTensor
from monograph.ir.types import TensorType, bf16, f16, f32
from monograph.ir.weights import Weights
from monograph.passes.quantize.choose import choose
from monograph.passes.quantize.levels import Levels
from monograph.passes.quantize.methods import PLAIN, plain_method
from monograph.passes.quantize.plan import Choice, Method, apply, rounded
from monograph.passes.quantize.rounding import nearest
from monograph.passes.quantize.settings import Quantization, parse_quality, parse_size
from monograph.passes.quantize.uses import uses_of

ENCODINGS = [
    "int8", "int8(block=32)", "int8(block=16,zeros)", "int4", "int4(block=32)", "int4(block=16,zeros)",
    "int4(block=64,scale=f16,zeros)", "int4(block=128,scale=bf16)", "int2(block=32)", "int2(block=16,zeros)",
]  # fmt: skip
LARGEST = {8: 0.01, 4: 0.13, 2: 0.6}
"""Relative error by bits that no method exceeds on normal numbers."""


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def decoded(lines: np.ndarray[Any, Any], shape: tuple[int, ...], encoding: Encoding) -> np.ndarray[Any, Any]:
    return Encoded(ArrayTensor(lines), TensorType(f32, shape, encoding)).numpy()


def error(method: Method, weight: np.ndarray[Any, Any], text: str) -> float:
    e = Encoding.parse(text)
    off = decoded(method.lines("w", weight, e), weight.shape, e) - weight
    return float(np.linalg.norm(off) / np.linalg.norm(weight))


# -- methods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ENCODINGS)
@pytest.mark.parametrize("method", PLAIN, ids=lambda m: m.name)
def test_a_method_is_near_the_weight(method: Method, text: str) -> None:
    e = Encoding.parse(text)
    for seed, weight in enumerate((normal(48, 128), normal(3, 256, seed=1) * 1e-3, normal(5, 128, seed=2) + 0.5)):
        found = error(method, weight, text)
        assert found < LARGEST[e.bits] * (1.2 if not e.block or seed == 2 else 1), (seed, found)


@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_method_is_worse_than_onnx_runtime_rounds(block: int, symmetric: bool) -> None:
    from onnxruntime.capi._pybind_state import quantize_matmul_4bits

    weight = normal(64, 256)
    packed = np.zeros((64, 256 // block, block // 2), np.uint8)
    scales = np.zeros(64 * 256 // block, np.float32)
    zeros = np.full(64 * ((256 // block + 1) // 2), 0x88, np.uint8)
    quantize_matmul_4bits(packed, np.ascontiguousarray(weight.T), scales, zeros, block, 64, 256, symmetric)
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(64, -1, block)
    zero = np.stack([zeros & 15, zeros >> 4], -1).reshape(64, -1)[:, : 256 // block, None]
    theirs = (codes.astype(np.float32) - zero) * scales.reshape(64, -1, 1)
    limit = np.linalg.norm(theirs.reshape(64, 256) - weight) / np.linalg.norm(weight)
    text = f"int4(block={block})" if symmetric else f"int4(block={block},zeros)"
    for method in PLAIN:
        # Half-quadratic rounding minimises another norm, and may lose a little in this one.
        assert error(method, weight, text) < limit * (1.02 if method.name == "hqq" else 0.99), method.name


def test_blocks_of_32_are_at_least_as_near_as_those_of_llama_cpp() -> None:
    weight = normal(32, 256)
    theirs = gguf.dequantize(gguf.quantize(weight, gguf.GGMLQuantizationType.Q4_0), gguf.GGMLQuantizationType.Q4_0)
    limit = np.linalg.norm(theirs - weight) / np.linalg.norm(weight)
    assert error(plain_method("rtn"), weight, "int4(block=32,scale=f16)") < limit
    assert error(plain_method("rtn"), weight, "q4_0") < limit, "a format of GGUF can be rounded to, too"
    e = q4_0
    again = plain_method("rtn").lines("w", theirs, e)
    assert np.allclose(decoded(again, theirs.shape, e), theirs, atol=2e-3)


def test_clipping_pays_where_one_number_is_large() -> None:
    weight = normal(64, 64) * 0.1
    weight[:, 3] *= 9
    e = Encoding.parse("int4(block=64)")
    plain = weight.reshape(-1, 64)
    scales = plain[np.arange(64), np.abs(plain).argmax(1)][:, None] / np.float32(-8)
    codes = np.clip(np.rint(plain / scales), -8, 7)
    unclipped = np.linalg.norm(codes * scales - plain)
    assert np.linalg.norm(decoded(plain_method("rtn").lines("w", weight, e), weight.shape, e) - weight) < unclipped


def test_half_quadratic_rounding_has_the_least_error_of_its_norm() -> None:
    weight = np.random.default_rng(0).laplace(size=(64, 128)).astype(np.float32)
    for text in ("int2(block=32)", "int2(block=16,zeros)"):
        e = Encoding.parse(text)
        off = {m.name: np.abs(decoded(m.lines("w", weight, e), weight.shape, e) - weight) ** 0.7 for m in PLAIN}
        assert off["hqq"].mean() < off["rtn"].mean() * 1.001, text


@pytest.mark.parametrize("method", PLAIN, ids=lambda m: m.name)
@pytest.mark.parametrize("text", ["int4(block=16)", "int4(block=16,zeros)", "int8", "int2(block=16,scale=f16,zeros)"])
def test_zeros_stay_zeros_and_a_grid_is_met(method: Method, text: str) -> None:
    e = Encoding.parse(text)
    weight = normal(4, 32)
    weight[1] = 0
    weight[2, 16:] = 0
    found = decoded(method.lines("w", weight, e), weight.shape, e)
    assert not found[1].any()
    assert not found[2, 16:].any() or not e.block
    constant = np.full((2, 32), 0.25, np.float32)
    assert np.allclose(decoded(method.lines("w", constant, e), constant.shape, e), constant, rtol=0.01)


@pytest.mark.parametrize("method", PLAIN, ids=lambda m: m.name)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_by_name(method: Method, value: float) -> None:
    weight = normal(6, 32)
    weight[4, 7] = value
    with pytest.raises(WeightsError, match=rf"blocks\.0\.w has a number that is not finite: {value} at \[4, 7\]"):
        method.lines("blocks.0.w", weight, Encoding.parse("int4(block=16,zeros)"))


def test_a_scale_too_large_for_its_type_is_refused() -> None:
    with pytest.raises(WeightsError, match="w has numbers whose scale is too large for f16"):
        plain_method("rtn").lines("w", normal(2, 16) * 1e7, Encoding.parse("int4(block=16,scale=f16)"))


def test_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, e = normal(37, 96), Encoding.parse("int4(block=32,zeros)")
    whole = plain_method("kquant").lines("w", weight, e)
    monkeypatch.setattr("monograph.passes.quantize.levels._CHUNK", 200)
    assert np.array_equal(plain_method("kquant").lines("w", weight, e), whole)


def test_codes_of_8_bits_without_zero_points_leave_out_the_lowest() -> None:
    e = Encoding.parse("int8")
    lines = plain_method("rtn").lines("w", normal(16, 64), e)
    assert e.codes(lines).min() == -127 or e.codes(lines).min() > -127
    assert Levels.of(e).low == 1
    assert nearest(normal(4, 8), Levels.of(e)).codes.min() >= 1


# -- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": "int3"}, "weights is 'int3', expected one of int4, int8"),
        ({"weights": "int"}, "did you mean"),
        ({"method": "gtpq"}, "did you mean 'gptq'"),
        ({"method": "awq"}, "method is 'awq', which needs text"),
        ({"method": "smoothquant", "calibrate": "x"}, "prepares for int8-dynamic, but weights is 'int4'"),
        ({"block": 48}, "block is 48, expected one of 16, 32"),
        ({"block": True}, "block is True"),
        ({"weights": "int8-dynamic", "block": 32}, "int8-dynamic has one scale a row"),
        ({"weights": "int8-dynamic", "symmetric": False}, "no zero points"),
        ({"quality": 0}, "quality is 0, expected a share"),
        ({"quality": float("nan")}, "expected a share"),
        ({"size": 0}, "size is 0, expected a number of bytes"),
        ({"cache": "int4"}, "cache is 'int4', expected one of int8"),
        ({"weights": ""}, "there is nothing to round"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as e:
        Quantization.of(fields)
    assert message in str(e.value)


def test_every_problem_of_settings_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as e:
        Quantization("int5", "rnt", 7)
    assert len(e.value.details) == 3
    with pytest.raises(ConfigError, match="has no field 'blok', did you mean 'block'"):
        Quantization.of({"blok": 32})


def test_settings_are_read() -> None:
    assert Quantization.of("int8") == Quantization("int8")
    assert Quantization.of(None) is None
    assert Quantization("int4").filled(64, symmetric=False) == Quantization("int4", "kquant", 64, symmetric=False)
    assert Quantization("int8").filled(32, symmetric=False).symmetric is True
    assert Quantization("int8", symmetric=False).filled(32, symmetric=True).symmetric is False
    assert (parse_quality("0.5%"), parse_quality("0.005")) == (0.005, 0.005)
    assert (parse_size("100MB"), parse_size("1.5 GB"), parse_size("12")) == (100_000_000, 1_500_000_000, 12)
    for parse, text in ((parse_quality, "half"), (parse_quality, "-1%"), (parse_size, "100MiB"), (parse_size, "")):
        with pytest.raises(ConfigError, match="expected"):
            parse(text)


# -- plans --------------------------------------------------------------------------------------------------------

SIZES = {"vocab": 96, "dim": 64, "ffn": 96, "layers": 2, "heads": 4, "kv_heads": 2, "max_positions": 64}


def llama(**fields: Any) -> mg.Model:
    return mg.init(load_family("llama")(**{**SIZES, "tied": True, **fields}), seed=0)


def planned(model: mg.Model, asked: Quantization, dtype: mg.DType = f32) -> Any:
    assert model.weights is not None
    filled = asked.filled(32, symmetric=False)
    return choose(model.graph(), model.weights, filled, plain_method(filled.chosen_method), dtype)


def test_a_plan_takes_matrices_of_layers_and_tables_and_says_why_not_others() -> None:
    found = planned(llama(), Quantization("int4"))
    kinds = {k: str(c.encoding) for k, c in found.choices.items()}
    assert kinds.pop("model.embed_tokens.weight") == "int8(block=32)"
    assert set(kinds.values()) == {"int4(block=32,zeros)"}
    assert len(kinds) == 14
    assert found.wide == dict.fromkeys(found.wide, "is f32[64], no matrix")
    assert all("norm" in k for k in found.wide)
    assert found.choices["model.embed_tokens.weight"].why == "decides on the output: 8 bits"


@pytest.mark.parametrize(
    ("ffn", "block", "kept", "why"),
    [
        (96, 64, "int4(block=32,zeros)", "blocks of 32: rows of 96 numbers are no multiple of 64"),
        (112, 32, "int4(block=16,zeros)", "blocks of 16: rows of 112 numbers are no multiple of 32"),
        (100, 32, None, "has 64 rows of 100 numbers, no multiple of 16 or 32"),
    ],
)
def test_odd_widths(ffn: int, block: int, kept: str | None, why: str) -> None:
    found = planned(llama(ffn=ffn), Quantization("int4", block=block))
    name = "model.layers.0.mlp.down_proj.weight"
    if kept is None:
        assert found.wide[name] == why
    else:
        assert (str(found.choices[name].encoding), found.choices[name].why) == (kept, why)


def test_scales_have_the_type_of_activations() -> None:
    for dtype in (f16, bf16):
        found = planned(llama(), Quantization("int4"), dtype)
        assert {c.encoding.scale for c in found.choices.values()} == {dtype}


def test_one_scale_a_row_but_for_tables() -> None:
    found = planned(llama(), Quantization("int8-dynamic"))
    kinds = {str(c.encoding) for k, c in found.choices.items() if "embed" not in k}
    assert kinds == {"int8"}
    assert str(found.choices["model.embed_tokens.weight"].encoding) == "int8(block=32)"
    untied = planned(llama(tied=False), Quantization("int8-dynamic"))
    assert str(untied.choices["lm_head.weight"].encoding) == "int8"


@pytest.mark.parametrize(("tables", "kept"), [("", "int8(block=32)"), ("int4", "int4(block=32,zeros)"), ("wide", "")])
@pytest.mark.parametrize("tied", [True, False])
def test_tables_and_heads_are_as_asked(tables: str, kept: str, tied: bool) -> None:
    found = planned(llama(tied=tied), Quantization("int4", tables=tables))
    for name in ("model.embed_tokens.weight", *(() if tied else ("lm_head.weight",))):
        if kept:
            assert str(found.choices[name].encoding) == kept
        else:
            assert found.wide[name] == "is a table or a head, which was asked to stay wide"
    dynamic = planned(llama(tied=tied), Quantization("int8-dynamic", tables=tables))
    assert str(dynamic.choices["model.layers.0.mlp.up_proj.weight"].encoding) == "int8"


def test_weights_that_are_stored_transposed_have_blocks_along_their_first_axis() -> None:
    model = mg.init(load_family("gpt2")(vocab=96, dim=64, layers=1, heads=4, inner=96, max_positions=64), seed=0)
    found = planned(model, Quantization("int4"))
    assert str(found.choices["transformer.h.0.attn.c_attn.weight"].encoding) == "int4(axis=0,block=32,zeros)"
    assert str(found.choices["transformer.wte.weight"].encoding) == "int8(block=32)"


def test_uses_do_not_change_the_graph() -> None:
    graph = llama().graph()
    before = str(graph)
    found = uses_of(graph)
    assert str(graph) == before
    assert found["model.norm.weight"] == "is f32[64], no matrix"


def test_a_weight_that_something_else_reads_stays_wide() -> None:
    graph = llama().graph()
    with mg.ir.building(graph):
        w = graph.params["model.layers.0.mlp.up_proj.weight"]
        graph.output("sums", mg.ops.sum(w, axis=-1))
    assert uses_of(graph)["model.layers.0.mlp.up_proj.weight"] == (
        "is read by sum, not by linear layers and embeddings only"
    )


def test_nothing_to_round_is_refused_with_every_reason() -> None:
    model = mg.init(
        load_family("llama")(**{**SIZES, "dim": 4, "ffn": 4, "vocab": 8, "heads": 2, "kv_heads": 2}), seed=0
    )
    with pytest.raises(ConfigError, match="has no weight that can be stored as int4") as e:
        planned(model, Quantization("int4"))
    assert any("fewer than 256 numbers" in line for line in e.value.details)


def test_applying_a_plan_reads_one_tensor_at_a_time_and_keeps_names(tmp_path: Path) -> None:
    weights = Weights.of({"a": normal(8, 32), "b": normal(32, 8, seed=1), "c": normal(4)})
    plan = {
        "a": Choice(Encoding.parse("int4(block=16)"), plain_method("rtn")),
        "b": Choice(Encoding.parse("int8(axis=0)"), plain_method("rtn")),
    }
    told: list[tuple[int, int, str]] = []
    found = apply(weights, plan, tmp_path, lambda *x: told.append(x))
    assert told == [(1, 2, "a"), (2, 2, "b")]
    assert found["a"].type == TensorType(f32, (8, 32), Encoding.parse("int4(block=16)"))
    assert np.allclose(found["b"].numpy(), weights.numpy("b"), atol=0.02)
    assert found["c"] is weights["c"]
    (tmp_path / "again").mkdir()
    errors = {r.name: r.error for r in rounded(weights, plan, tmp_path / "again")}
    off = found["b"].numpy() - weights.numpy("b")
    assert errors["b"] == pytest.approx(float(np.linalg.norm(off) / np.linalg.norm(weights.numpy("b"))), rel=1e-5)


def test_a_report_is_json(tmp_path: Path) -> None:
    engine = mg.build(llama(), tmp_path / "built", quantize="int4")
    assert engine.report is not None
    report = engine.report.quantization
    assert report is not None
    said = json.loads((tmp_path / "built" / "quantization.json").read_text())
    assert said == json.loads(report.to_json())
    assert said["bytes_after"] < 0.4 * said["bytes_before"]
    by_name = {w["name"]: w for w in said["weights"]}
    assert by_name["model.norm.weight"]["encoding"] == ""
    assert 0.03 < by_name["model.layers.0.mlp.up_proj.weight"]["error"] < 0.1
    assert "14 int4(block=32,zeros)" in report.summary()
    assert "kept wide" in repr(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": Quantization("int8-dynamic"), "target": "cuda"}, "ask for int8"),
        ({"quantize": "int4", "dtype": "f64"}, "not in f64"),
        ({"quantize": "int4-dynamic"}, "expected one of int4"),
        ({"quantize": {"weights": "int4", "blocks": 32}}, "did you mean 'block'"),
    ],
)
def test_what_a_target_cannot_do_is_refused_and_leaves_nothing(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(MonographError, match=message):
        mg.build(llama(), tmp_path / "built", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int2"}, "no 2-bit form"),
        ({"quantize": "int4", "opset": 20}, "opset 20 has no integers of 4 bits"),
        ({"quantize": "int8", "dtype": "f64"}, "not in f64"),
    ],
)
def test_what_an_export_cannot_do_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MonographError, match=message):
        mg.export(llama(), tmp_path / "portable", **options)
    assert not list(tmp_path.iterdir())
