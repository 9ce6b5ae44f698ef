"""How far products over 8-bit activations may be off comes from rounding those of the reference: no constant."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import monograph as mg
import numpy as np
import pytest
from monograph.backends.target import Target
from monograph.frontends.dsl import Model
from monograph.ir.encodings import int4, int8
from monograph.ir.weights import Weights
from monograph.parity import Parity, verify
from monograph.passes.differential import CASES
from monograph.passes.quantize.activations import rounded_by_block, rounding
from monograph.quantizing import quantized
from test_quantize_build import tiny

FEW = [CASES[i] for i in (0, 2, 3, 5)]


def built(model: Model, form: str, folder: Path, changed: float = 0.0) -> Parity:
    """The parity of a build with its model; changed: by how much one of its matrices is made larger afterwards."""
    asked = mg.Quantization(form)
    mg.build(model, folder / "built", quantize=asked).close()
    name = "model.layers.1.self_attn.o_proj.weight"
    if changed:
        assert model.weights is not None
        arrays = {k: model.weights.numpy(k) * (1 + changed if k == name else 1) for k in model.weights}
        model = dataclasses.replace(model, weights=Weights.of(arrays))
    with quantized(model, asked, Target.of("cpu"), folder) as (served, _):
        return verify(served, folder / "built", torch=False, cases=FEW)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
@pytest.mark.parametrize("form", ["int8-dynamic", "int4"])
@pytest.mark.parametrize("seed", [1, 3])
def test_a_rounding_may_choose_other_experts(family: str, form: str, seed: int, tmp_path: Path) -> None:
    assert built(mg.init(tiny(family), seed=seed), form, tmp_path).passed


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bert", "t5", "whisper"])
@pytest.mark.parametrize("form", ["int8-dynamic", "int4"])
def test_others_pass_within_less_than_the_constant_was(family: str, form: str, tmp_path: Path) -> None:
    parity = built(tiny(family), form, tmp_path)
    assert parity.passed
    off = [r.difference / max(r.scale, 1.0) for r in parity.rows if r.backend != "ort" or form == "int8-dynamic"]
    assert max(off) < 0.02


@pytest.mark.parametrize("form", ["int8-dynamic", "int4"])
def test_a_matrix_that_is_off_by_a_tenth_fails(form: str, tmp_path: Path) -> None:
    parity = built(tiny("llama"), form, tmp_path, changed=0.12)
    ways = {r.backend for r in parity.rows if not r.passed}
    assert ("ort" if form == "int8-dynamic" else "ort 8-bit") in ways
    worst = max(r.difference / max(r.scale, 1.0) for r in parity.rows)
    assert worst < 0.05, "a tolerance of 0.05 would have let it pass"


def test_rounding_by_chance_is_right_on_average() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 100)).astype(np.float32)
    for block in (0, 16, 32):
        found = np.mean([rounded_by_block(x, block, np.random.default_rng(i)) for i in range(400)], axis=0)
        step = np.abs(x).max() / 127
        assert np.abs(found - x).max() < 0.2 * step
        assert np.abs(rounded_by_block(x, block) - x).max() <= 0.51 * step


def test_only_named_weights_round_and_shapes_and_types_stay() -> None:
    read = rounding({"a": int8, "b": int4.by_block(32)})
    x = np.random.default_rng(0).standard_normal((2, 3, 64)).astype(np.float16)
    assert read("c", x) is x
    for name in "ab":
        assert read(name, x).shape == x.shape and read(name, x).dtype == x.dtype and (read(name, x) != x).any()
