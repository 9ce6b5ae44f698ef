"""Builds with weights in fewer bits: every form on every hard mask, against transformers, by the command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.target import Target
from monograph.cli import app
from monograph.frontends.dsl import Model, load_family
from monograph.frontends.huggingface import save_pretrained
from monograph.ir.encoded import plain
from monograph.ir.weights import Weights
from monograph.parity import verify
from monograph.passes.differential import CASES
from monograph.quantizing import quantized
from small_models import OWN, SMALL
from test_gguf_blocks import write_llama
from typer.testing import CliRunner

pytestmark = pytest.mark.slow
WIDE = {"dim": 64, "ffn": 96, "inner": 96, "decoder_ffn": 96, "head_dim": 16, "rotary_dim": 16, "vocab": 96}


def tiny(family: str, **fields: Any) -> Model:
    """A model of a family with random weights, wide enough for blocks of 32."""
    found = load_family(family)
    known = {f.name for f in dataclasses.fields(found.config_class)}
    given = {**SMALL, **OWN.get(family, {}), **WIDE, **fields}
    return mg.init(found(**{k: v for k, v in given.items() if k in known}), seed=0)


MODELS = {
    "tied": lambda: tiny("llama", tied=True),
    "untied": lambda: tiny("llama", tied=False),
    "odd": lambda: tiny("llama", tied=True, ffn=100),
    "gpt2": lambda: tiny("gpt2"),
    "bert": lambda: tiny("bert"),
    "whisper": lambda: tiny("whisper"),
}
FORMS = {
    "int8": mg.Quantization("int8"),
    "int4": mg.Quantization("int4"),
    "int4 symmetric in blocks of 16": mg.Quantization("int4", "rtn", 16, symmetric=True),
    "int2": mg.Quantization("int2", "hqq"),
    "int8-dynamic": mg.Quantization("int8-dynamic"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_a_build_computes_what_its_codes_stand_for(name: str, form: str, tmp_path: Path) -> None:
    model, asked = MODELS[name](), FORMS[form]
    with mg.build(model, tmp_path / "built", quantize=asked) as engine:
        assert engine.report is not None and engine.report.quantization is not None
        nodes = engine.report.nodes["model.onnx"]
        wide = {layer.name: layer.why for layer in engine.report.quantization.wide}
    assert nodes["MatMulInteger" if asked.dynamic else "MatMulNBits"] > 0
    # No product of a weight is left wide but those that the report names.
    odd = [why for why in wide.values() if "no multiple" in why]
    assert len(odd) == (2 if name == "odd" and not asked.dynamic else 0)
    with quantized(model, asked, Target.of("cpu"), tmp_path) as (served, _):
        parity = verify(served, tmp_path / "built", torch=False, cases=[CASES[i] for i in (0, 2, 3, 4, 5, 8)])
    assert parity.passed, parity


@pytest.mark.parametrize("form", ["int8", "int4", "int8-dynamic"])
@pytest.mark.parametrize("name", ["tied", "gpt2", "bert", "whisper"])
def test_a_portable_export_computes_the_same(name: str, form: str, tmp_path: Path) -> None:
    model, asked = MODELS[name](), FORMS[form]
    mg.export(model, tmp_path / "portable", quantize=asked)
    said = json.loads((tmp_path / "portable" / "quantization.json").read_text())
    assert said["bytes_after"] < 0.6 * said["bytes_before"]
    with quantized(model, asked, None, tmp_path) as (served, _):
        parity = verify(served, tmp_path / "portable", torch=False, cases=[CASES[i] for i in (0, 2, 3)])
    assert parity.passed, parity


@pytest.mark.parametrize("form", ["int4", "int8-dynamic"])
def test_transformers_with_the_same_numbers_says_the_same(form: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = tiny("llama", tied=False)
    mg.build(model, tmp_path / "built", quantize=form).close()
    with quantized(model, mg.Quantization(form), Target.of("cpu"), tmp_path) as (served, _):
        assert served.weights is not None
        numbers = Weights(plain(served.weights))
        save_pretrained(dataclasses.replace(served, weights=numbers), tmp_path / "hf")
    ids = np.random.default_rng(0).integers(0, 96, (2, 9))
    with torch.no_grad():
        want = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")(torch.tensor(ids)).logits.numpy()
    session = open_session(tmp_path / "built", threads=1)
    got = session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"]
    np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())
    session.prefill(ids[:, :5], np.array([5, 5]))
    for i in range(5, 9):
        step = session.step(ids[:, i])
    np.testing.assert_allclose(step, want[:, -1], atol=0.02 * np.abs(want).max())


def test_blocks_of_a_gguf_file_are_kept_unless_asked(tmp_path: Path) -> None:
    model = mg.load(write_llama(tmp_path / "model.gguf", "Q4_1"))
    with mg.build(model, tmp_path / "kept", quantize="int8") as engine:
        assert engine.report is not None and engine.report.quantization is not None
        kept = engine.report.quantization
    assert kept.encodings == {"q4_1": 14, "q8_0": 1}
    assert all("rounding it again (--again) loses more" in x.why for x in kept.layers if x.encoding)
    with mg.build(model, tmp_path / "again", quantize=mg.Quantization("int8", again=True)) as engine:
        assert engine.report is not None and engine.report.quantization is not None
        assert engine.report.quantization.encodings == {"int8(block=64)": 13, "int8(block=32)": 2}
    mixed = mg.load(write_llama(tmp_path / "mixed.gguf", "mixed"))
    with mg.build(mixed, tmp_path / "mixed", quantize="int8") as engine:
        assert engine.report is not None and engine.report.quantization is not None
        found = {x.name: x.why for x in engine.report.quantization.layers}
    assert found["model.layers.0.self_attn.v_proj.weight"] == "was stored as Q5_0, and is rounded again"


def test_a_folder_for_cuda_has_blocks_without_zero_points(tmp_path: Path) -> None:
    with mg.build(tiny("llama", tied=True), tmp_path / "built", target="cuda", quantize="int4") as engine:
        assert engine.report is not None and engine.report.quantization is not None
        assert engine.report.quantization.encodings == {
            "int8(block=32,scale=f16)": 1, "int4(block=32,scale=f16)": 14,
        }  # fmt: skip
        assert engine.report.nodes["model.onnx"]["MatMulNBits"] > 8


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["build", *arguments])


def test_the_command_says_what_was_done(tmp_path: Path) -> None:
    save_pretrained(tiny("llama", tied=True), tmp_path / "source")
    done = command(str(tmp_path / "source"), str(tmp_path / "built"), "--weights", "int4", "--block", "64", "--check")
    assert done.exit_code == 0, done.output
    assert "int4(block=64,zeros)" in done.output and "by kquant" in done.output
    assert "rows of 96 numbers are no multiple of 64" in done.output
    assert "0 fail" in done.output
    wide = command(
        str(tmp_path / "source"), str(tmp_path / "out"), "--weights", "int8-dynamic", "--target", "onnx", "--json"
    )
    said = json.loads(wide.stdout)
    assert said["quantization"]["asked"]["weights"] == "int8-dynamic"
    assert {w["encoding"] for w in said["quantization"]["weights"]} == {"", "int8", "int8(block=32)"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "int3"], "weights is 'int3'"),
        (["--method", "hqq"], "add --weights int4"),
        (["--weights", "int4", "--block", "40"], "block is 40"),
        (["--weights", "int4", "--quality", "much"], "expected a share"),
        (["--weights", "int4", "--size", "100 miles"], "expected bytes"),
        (["--weights", "int2", "--target", "onnx"], "no 2-bit form"),
        (["--adapter", "x"], "expected NAME=DIR"),
        (["--target", "onnx", "--tune"], "does not take --tune"),
        (["--target", "onnx", "--load", "1x4+4"], "does not take --load"),
        (["--target", "onnx", "--max-positions", "12"], "does not take --max-positions"),
        (["--target", "onnx", "--cache", "int8"], "no cache in 8 bits"),
        (["--target", "onnx", "--weights", "int4", "--prompts", "float"], "leaves to its runtime how prompts"),
        (["--opset", "21"], "a build for cpu does not take --opset"),
        (["--tune-seconds", "3"], "without --tune does not take --tune-seconds"),
        (["--prompts", "float"], "no weight has blocks"),
        (["--prompts", "float", "--weights", "int8-dynamic"], "int8-dynamic reads prompts as it makes steps"),
        (["--cache", "int8", "--block", "16"], "block is 16, but weights is empty"),
        (["--cache", "int8", "--asymmetric"], "symmetric is False, but weights is empty"),
    ],
)
def test_the_command_refuses_what_cannot_be(options: list[str], message: str, tmp_path: Path) -> None:
    save_pretrained(tiny("llama", tied=True), tmp_path / "source")
    done = command(str(tmp_path / "source"), str(tmp_path / "built"), *options)
    assert done.exit_code == 1
    assert message in " ".join(done.output.split())
    assert not (tmp_path / "built").exists()


def test_nothing_is_left_behind_where_a_weight_is_damaged(tmp_path: Path) -> None:
    model = tiny("llama", tied=True)
    assert model.weights is not None
    arrays = {k: model.weights.numpy(k).copy() for k in model.weights}
    arrays["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    broken = dataclasses.replace(model, weights=Weights.of(arrays))
    with pytest.raises(mg.MonographError, match=r"layers\.1\.mlp\.up_proj\.weight has a number that is not finite"):
        mg.build(broken, tmp_path / "built", quantize="int4")
    assert not list(tmp_path.iterdir())


def test_a_number_too_large_to_round_is_refused_by_name(tmp_path: Path) -> None:
    model = tiny("llama", tied=True)
    assert model.weights is not None
    arrays = {k: model.weights.numpy(k).copy() for k in model.weights}
    arrays["model.layers.1.mlp.up_proj.weight"][3, 5] = 3e38
    large = dataclasses.replace(model, weights=Weights.of(arrays))
    with pytest.raises(mg.MonographError, match=r"up_proj\.weight (cannot be rounded|has numbers so large)"):
        mg.build(large, tmp_path / "built", quantize="int4")
    assert not list(tmp_path.iterdir())


def test_codes_in_the_cache_are_checked_as_codes(tmp_path: Path) -> None:
    model, asked = tiny("llama", tied=True), mg.Quantization("", cache="int8")
    with mg.build(model, tmp_path / "built", quantize=asked) as engine:
        assert verify(model, engine, torch=False).passed


def test_experts_are_exported_in_bf16(tmp_path: Path) -> None:
    model = tiny("deepseek_v3")
    mg.export(model, tmp_path / "export", dtype="bf16")
    with pytest.raises(mg.MonographError, match=r"model\.onnx: cannot be compared here: onnxruntime .* DATA|NOT_IMPL"):
        verify(model, tmp_path / "export", torch=False)
