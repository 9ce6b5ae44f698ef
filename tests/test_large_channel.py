"""One hidden channel 200 times larger than the others: greedy tokens stay those of the wide model. (onnxruntime#29849)

The weights lie on the grid of their encoding, so that nothing but activations in 8 bits can make a difference.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
from monograph.backends.onnxruntime import build as build_session
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.onnxruntime.choices import CHOICES
from monograph.backends.target import Target
from monograph.calibrating import trapped_in
from monograph.frontends.dsl import Model, load_family
from monograph.ir.encoded import Encoded
from monograph.ir.encodings import LAYOUTS, Encoding
from monograph.ir.tensors import ArrayTensor
from monograph.ir.types import TensorType, f32
from monograph.passes.quantize.rounding import Nearest
from monograph.quantizing import narrow_of
from monograph.samples import random_samples

Array = np.ndarray[Any, Any]
TIMES, CHANNEL = 200.0, 21


def llama(dim: int = 64, layers: int = 2, vocab: int = 96, seed: int = 0, heads: int = 4) -> Model:
    made = load_family("llama")(
        vocab=vocab, dim=dim, ffn=2 * dim, layers=layers, heads=heads, kv_heads=heads // 2, max_positions=128
    )
    model = mg.init(made, seed)
    rng = np.random.default_rng(seed)
    assert model.weights is not None
    arrays = {k: t.numpy() for k, t in model.weights.items()}
    scaled = {k: rng.standard_normal(w.shape).astype(np.float32) * w.shape[-1] ** -0.5 for k, w in arrays.items()
              if w.ndim == 2}  # fmt: skip
    model.weights = mg.Weights.of({**arrays, **scaled})
    return model


def planted(model: Model, times: float = TIMES, channel: int = CHANNEL) -> Model:
    """The same function, with one channel of every normed stream made larger and its columns smaller."""
    assert model.weights is not None
    arrays = {k: t.numpy().copy() for k, t in model.weights.items()}
    for name, x in arrays.items():
        if name.endswith("layernorm.weight"):
            x[channel] *= times
        if any(f".{p}_proj.weight" in name for p in ("q", "k", "v", "gate", "up")):
            x[:, channel] /= times
    return Model(model.source, model.config, mg.Weights.of(arrays))


def on_grid(model: Model, encoding: Encoding) -> Model:
    """A model whose projections are stored in an encoding; what they stand for is its weights."""
    assert model.weights is not None
    found: dict[str, Any] = dict(model.weights)
    for name, tensor in model.weights.items():
        if "_proj" in name:
            lines = Nearest().lines(name, tensor.numpy(), encoding)
            found[name] = Encoded(ArrayTensor(lines), TensorType(f32, tensor.shape, encoding))
    return Model(model.source, model.config, mg.Weights(found))


def decoded(model: Model) -> Model:
    assert model.weights is not None
    return Model(model.source, model.config, mg.Weights.of({k: t.numpy() for k, t in model.weights.items()}))


def greedy(folder: Path, prompts: Array, new: int = 16) -> Array:
    """The prompts with the tokens that a folder chooses behind them."""
    session = open_session(folder)
    chosen = session.prefill(prompts, np.full(len(prompts), prompts.shape[1])).argmax(-1)
    found = [chosen]
    for _ in range(new - 1):
        chosen = session.step(chosen).argmax(-1)
        found.append(chosen)
    return np.concatenate([prompts, np.stack(found, 1)], 1)


def logits(folder: Path, rows: Array) -> Array:
    return open_session(folder).run({"input_ids": rows})["logits"]


def sure(wide: Array) -> Array:
    """Where the likeliest token is so by more than ordinary rounding of activations moves it."""
    best = np.sort(wide, -1)
    return best[..., -1] - best[..., -2] > 0.08 * wide.std()


CASES = [LAYOUTS["int8"].by_block(32), LAYOUTS["int2"].by_block(32, zeros=True), LAYOUTS["q8_0"]]


@pytest.mark.parametrize("dim,vocab", [(64, 96), (192, 300)])
@pytest.mark.parametrize("encoding", CASES, ids=str)
@pytest.mark.parametrize("times", [200.0, 1000.0])
def test_greedy_tokens_stay(encoding: Encoding, dim: int, vocab: int, times: float, tmp_path: Path) -> None:
    """In texts of the wide model, at every position where it is sure; a build that does not look loses a quarter."""
    model = on_grid(planted(llama(dim, vocab=vocab), times), encoding)
    prompts = np.random.default_rng(1).integers(0, vocab, (8, 16))
    mg.build(decoded(model), tmp_path / "wide")
    # Prompts as steps are: a graph of their own would multiply them in float.
    mg.build(model, tmp_path / "narrow", quantize=mg.Quantization("", prompts="same"))
    build_session(model, None, tmp_path / "careless", choices=replace(CHOICES["cpu"], prompts="same"))
    rows = greedy(tmp_path / "wide", prompts)
    wide = logits(tmp_path / "wide", rows)
    chosen, where = wide.argmax(-1), sure(wide)
    assert where.mean() > 0.7
    np.testing.assert_array_equal(logits(tmp_path / "narrow", rows).argmax(-1)[where], chosen[where])
    assert (logits(tmp_path / "careless", rows).argmax(-1) != chosen).mean() > 0.25


def test_the_report_names_the_layers(tmp_path: Path) -> None:
    """Rounded at build, without a text: int8-dynamic gives such layers blocks, int8 takes activations in two parts."""
    for form in ("int8", "int8-dynamic"):
        report = mg.build(planted(llama()), tmp_path / form, quantize=form).report
        assert report is not None and report.quantization is not None
        told = {x.name: x for x in report.quantization.layers if "activations in full" in x.why}
        assert set(told) == set(report.quantization.fine) >= {"model.layers.0.self_attn.q_proj.weight"}
        assert all(f"channel {CHANNEL} is" in x.why and "block=" in x.encoding for x in told.values())
        assert "activations_in_full" in (tmp_path / form / "quantization.json").read_text()


def found(model: Model, tmp_path: Path) -> dict[str, Any]:
    assert model.weights is not None
    return dict(trapped_in(model, model.weights, {}, random_samples(model), tmp_path, narrow_of(Target.of("cpu"))))


def test_layers_behind_the_channel_are_found(tmp_path: Path) -> None:
    traps = found(on_grid(planted(llama()), CASES[0]), tmp_path)
    behind = {f"model.layers.{i}.{p}_proj.weight" for i in range(2)
              for p in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up")}  # fmt: skip
    assert set(traps) == behind
    assert {t.channel for t in traps.values()} == {CHANNEL}


def test_ordinary_layers_are_left_alone(tmp_path: Path) -> None:
    assert found(on_grid(llama(), CASES[0]), tmp_path) == {}
