"""Calibration: layers one at a time give what the whole graph gives, and factors move without changing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.ir.encodings import LAYOUTS
from monograph.ir.interpret import interpret
from monograph.ir.weights import Weights
from monograph.passes.differential import Case, random_params, sample_inputs
from monograph.passes.quantize.activations import relative_error, rounded_by_block
from monograph.passes.quantize.calibration import Calibration, matrix
from monograph.passes.quantize.folding import fold_of
from monograph.passes.quantize.gptq import Gptq
from monograph.passes.quantize.grid import numbers
from monograph.passes.quantize.plan import Choice, apply
from monograph.passes.quantize.rounding import Nearest
from monograph.passes.quantize.statistics import gathered
from monograph.passes.quantize.stream import Group, Stream
from small_models import FAMILIES, small

Array = np.ndarray[Any, Any]
INT8 = LAYOUTS["int8"]


def given(family: str, lengths: tuple[int, ...] = (7, 12)) -> tuple[Any, Weights, list[dict[str, Array]]]:
    graph = small(family).graph()
    samples = [sample_inputs(graph, Case("all-ones", 1, length=n), seed=n) for n in lengths]
    return graph, Weights.of(random_params(graph)), samples


def whole(graph: Any, weights: Any, samples: list[dict[str, Array]]) -> list[dict[str, Array]]:
    return [interpret(graph, s, lambda k: weights[k].numpy()) for s in samples]


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_by_layer_is_the_whole(family: str, tmp_path: Path) -> None:
    """And no activation stays on the disk."""
    graph, weights, samples = given(family)
    stream = Stream(graph, weights, samples, tmp_path)
    for found, expected in zip(stream.outputs(), whole(graph, weights, samples), strict=True):
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
    seen: list[str] = []

    def watch(group: Group) -> dict[str, Any]:
        assert sum(len(x) for x in group.rows()) > 0
        seen.extend(layer.weight for layer in group.layers)
        return {}

    stream.watch(watch)
    assert len(seen) == len(stream.layers) > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["awq", "smoothquant"])
def test_factors_change_nothing(family: str, method: str, tmp_path: Path) -> None:
    """Whatever moves between layers, the graph with the moved weights computes what it did; what does not says why."""
    graph, weights, samples = given(family, (17, 23))
    calibration = Calibration(graph, weights, samples, tmp_path)
    plan = {layer.weight: Choice(INT8, Nearest()) for layer in calibration.stream.layers}
    done = calibration.scaled(plan, method)
    for found, expected in zip(whole(graph, done.weights, samples), whole(graph, weights, samples), strict=True):
        for name in expected:
            assert relative_error(found[name], expected[name]) < 1e-4
    moved = {k for k in weights if done.weights[k] is not weights[k]}
    assert moved or done.notes
    assert all(note.startswith("no factors: ") for note in done.notes.values())
    assert {c.method.name for c in done.plan.values()} == {method}


FOLDS = {
    "llama": {"q_proj": "input_layernorm", "gate_proj": "post_attention_layernorm", "down_proj": "up_proj",
              "o_proj": "v_proj", "lm_head": "model.norm"},
    "gpt2": {"c_attn": "ln_1", "c_fc": "ln_2", "attn.c_proj": "c_attn", "mlp.c_proj": "gelu", "wte": "read elsewhere"},
    "gemma3_text": {"q_proj": "input_layernorm", "down_proj": "up_proj"},
    "bert": {"attention.self.query": "read by add", "output.dense": "value"},
    "whisper": {"fc1": "final_layer_norm", "fc2": "gelu", "out_proj": "v_proj"},
    "t5": {"wo": "wi", "SelfAttention.q": "layer_norm"},
    "mixtral": {"gate": "also read by"},
}  # fmt: skip


@pytest.mark.parametrize("family", FOLDS)
def test_where_factors_go(family: str, tmp_path: Path) -> None:
    """To the norm or the layer before, or nowhere, and then it is said what is in the way."""
    graph, weights, samples = given(family)
    found: dict[str, str] = {}

    def watch(group: Group) -> dict[str, Any]:
        fold = fold_of(group.x, group.layers)
        told = fold if isinstance(fold, str) else " ".join(p.parameter for p in fold.places)
        found.update({layer.weight: told for layer in group.layers})
        return {}

    Stream(graph, weights, samples, tmp_path).watch(watch)
    for layer, place in FOLDS[family].items():
        told = {k: v for k, v in found.items() if layer in k}
        assert told, f"no layer {layer} among {sorted(found)}"
        assert any(place in v for v in told.values()), f"{layer}: {told}"


def test_keys_that_heads_share_have_one_factor(tmp_path: Path) -> None:
    graph, weights, samples = given("llama")
    folds: dict[str, Any] = {}

    def watch(group: Group) -> dict[str, Any]:
        folds.update({layer.weight: fold_of(group.x, group.layers) for layer in group.layers})
        return {}

    Stream(graph, weights, samples, tmp_path).watch(watch)
    fold = folds["model.layers.0.self_attn.o_proj.weight"]
    # 4 heads of 4 channels over 2 of keys: heads 0 and 1 read the first.
    assert fold.count == 8
    np.testing.assert_array_equal(fold.channels.reshape(4, 4), np.arange(8).reshape(2, 4).repeat(2, axis=0))


def test_statistics_are_of_all_tokens(tmp_path: Path) -> None:
    graph, weights, samples = given("gpt2", (9, 30, 64))
    checked: list[str] = []

    def watch(group: Group) -> dict[str, Any]:
        x = np.concatenate(list(group.rows()))
        found = gathered(group, gram=True, keep=10)
        assert found.tokens == len(x) == 9 + 30 + 64
        np.testing.assert_allclose(found.mean, np.abs(x).mean(0), rtol=1e-5)
        np.testing.assert_allclose(found.largest, np.abs(x).max(0))
        np.testing.assert_allclose(found.gram, x.T.astype(np.float64) @ x, rtol=1e-4, atol=1e-4)
        assert 8 <= len(found.rows) <= 10
        assert all(any((row == full).all() for full in x) for row in found.rows)
        checked.append(group.layers[0].weight)
        return {}

    Stream(graph, weights, samples, tmp_path).watch(watch)
    assert len(checked) == 9


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "whisper", "mamba2"])
def test_gptq_sees_what_the_rounded_layers_give(family: str, tmp_path: Path) -> None:
    """Outputs are nearer to those of the wide model than with nearest codes, and each choice names its rounder."""
    graph, weights, samples = given(family, (40, 41, 42, 43))
    calibration = Calibration(graph, weights, samples, tmp_path)
    coarse = LAYOUTS["int4"]
    plan = {}
    for layer in calibration.stream.layers:
        axis = 0 if layer.turned else -1
        if matrix(layer, weights).shape[1] % 2 == 0:
            plan[layer.weight] = Choice(coarse.along(axis, 2), Nearest())
    done = calibration.gptq(plan)
    expected = whole(graph, weights, samples)
    errors = {}
    for name, choices in (("rtn", plan), ("gptq", done.plan)):
        place = tmp_path / name
        place.mkdir()
        found = whole(graph, apply(weights, choices, place), samples)
        errors[name] = np.mean([relative_error(a[k], b[k]) for a, b in zip(found, expected, strict=True) for k in b])
    assert errors["gptq"] < 0.97 * errors["rtn"], errors
    assert {c.method.name for c in done.plan.values()} <= {"gptq", "rtn"}
    assert all("also read elsewhere" in note for note in done.notes.values())


@pytest.mark.parametrize("family", ["t5", "vit", "lfm2", "gemma2"])
def test_gptq_of_every_layer_is_better_over_its_input(family: str, tmp_path: Path) -> None:
    graph, weights, samples = given(family, (40, 41, 42, 43))
    errors: list[tuple[float, float]] = []

    def watch(group: Group) -> dict[str, Any]:
        x, found = np.concatenate(list(group.rows())), gathered(group, gram=True)
        assert found.gram is not None
        for layer in group.layers:
            w, e = matrix(layer, weights), LAYOUTS["int4"]
            lines = [m.lines("w", w, e) for m in (Nearest(), Gptq(Nearest(), {"w": found.gram}))]
            rtn, gptq = (relative_error(x @ numbers(e, each).T, x @ w.T) for each in lines)
            errors.append((rtn, gptq))
        return {}

    Stream(graph, weights, samples, tmp_path).watch(watch)
    assert all(gptq < rtn for rtn, gptq in errors)


def test_activations_as_the_kernels_round_them() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 64)).astype(np.float32)
    x[:, 3] *= 200
    for block in (16, 32, 0):
        found = rounded_by_block(x, block)
        size = block or 64
        step = np.abs(x).reshape(5, -1, size).max(-1, keepdims=True) / 127
        assert (np.abs((found - x).reshape(5, -1, size)) <= step / 2 + 1e-6).all()
        assert np.abs(np.rint(found.reshape(5, -1, size) / step) - found.reshape(5, -1, size) / step).max() < 1e-3
    assert not rounded_by_block(np.zeros((2, 32), np.float32), 16).any()
