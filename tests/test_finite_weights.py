"""A weight that is not finite is refused by name, whichever way a build makes weights narrower."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
from monograph.frontends.dsl import Model
from monograph.ir.errors import WeightsError
from monograph.ir.weights import Weights
from monograph.passes.finite import check_finite
from test_quantize_build import tiny

NORM, MATRIX = "model.layers.1.input_layernorm.weight", "model.layers.0.mlp.up_proj.weight"
WAYS: dict[str, dict[str, Any]] = {
    "f16": {"dtype": "f16"},
    "bf16": {"dtype": "bf16", "target": "cuda"},
    "int4": {"quantize": "int4"},
    "int8-dynamic": {"quantize": "int8-dynamic"},
    "gptq": {"quantize": mg.Quantization("int4", "gptq", calibrate="a text")},
    "size": {"quantize": mg.Quantization("int4", size=10**6)},
    "cache": {"quantize": mg.Quantization("", cache="int8")},
}


def wrong(name: str, value: float) -> Model:
    """A llama with one number of one weight replaced, the last but one of its last row."""
    model = tiny("llama")
    assert model.weights is not None
    arrays = {k: model.weights.numpy(k).copy() for k in model.weights}
    arrays[name].reshape(-1)[-2] = value
    return dataclasses.replace(model, weights=Weights.of(arrays))


@pytest.mark.parametrize(("name", "place"), [(NORM, r"\[62\]"), (MATRIX, r"\[95, 62\]")])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("way", WAYS)
def test_every_build_that_narrows_refuses_it(way: str, name: str, place: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"{name} has a number that is not finite: {value} at {place}"):
        mg.build(wrong(name, value), tmp_path / "out", **WAYS[way])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("asked", [{"dtype": "f16"}, {"dtype": "bf16"}, {"quantize": "int4"}], ids=str)
def test_every_export_that_narrows_refuses_it(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"{NORM} has a number that is not finite: inf at \[62\]"):
        mg.export(wrong(NORM, np.inf), tmp_path / "out", **asked)
    assert not list(tmp_path.iterdir())


def test_cuda_narrows_by_itself(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"{NORM} has a number that is not finite"):
        mg.build(wrong(NORM, np.inf), tmp_path / "out", target="cuda")


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 3, 4), (5, 1 << 19)])
def test_where_the_number_is(shape: tuple[int, ...]) -> None:
    x = np.zeros(shape, np.float32)
    check_finite("w", x)
    x.reshape(-1)[-1] = np.nan
    at = [n - 1 for n in shape]
    with pytest.raises(WeightsError) as caught:
        check_finite("w", x)
    assert f"nan at {at}" in str(caught.value)


def test_numbers_that_f32_does_not_hold_and_integers() -> None:
    check_finite("w", np.array([2**40]))
    check_finite("w", np.empty((0, 3), np.float32))
    with pytest.raises(WeightsError, match=r"1e\+300 at \[1\]"):
        check_finite("w", np.array([1.0, 1e300]))
