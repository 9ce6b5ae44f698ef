"""Layers that families share, against PyTorch and the configs of transformers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from monograph.frontends.dsl import Scope
from monograph.frontends.layers import (
    Packed,
    attention,
    feed_forward,
    gated_feed_forward,
    rotary,
    unit_rms_norm,
)
from monograph.frontends.rope import rope_settings
from monograph.ir import Graph, Value, building, interpret
from monograph.ir.errors import ConfigError
from monograph.ir.types import f32, parse_type
from monograph.ir.weights import Weights

X = np.random.default_rng(0).standard_normal((2, 5, 12)).astype(np.float32)
PLACES = np.tile(np.arange(5), (2, 1))
Layer = Callable[[Scope, Value, Value], Value]


def run(layer: Layer) -> tuple[np.ndarray[Any, Any], dict[str, torch.Tensor]]:
    """(what a layer gives for X, its parameters)."""
    graph = Graph("layer")
    with building(graph):
        x, places = (graph.input(k, parse_type(t)) for k, t in (("x", "f32[B,S,12]"), ("places", "i64[B,S]")))
        graph.output("y", layer(Scope(graph, "", f32, 0.5), x, places))
    weights = Weights.initialize(graph, 1)
    values = {k: weights.numpy(k) + (0.1 if k.endswith("bias") else 0) for k in graph.params}
    given = {"x": X, "places": PLACES}
    got = interpret(graph, {k: given[k] for k in graph.inputs}, values)["y"]
    return got, {k: torch.from_numpy(np.asarray(v, np.float32)) for k, v in values.items()}


def heads(x: torch.Tensor, n: int) -> torch.Tensor:
    return x.reshape(2, -1, n, x.shape[-1] // n).transpose(1, 2)


def project(p: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **settings: Any) -> torch.Tensor:
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, **settings)
    return y.transpose(1, 2).reshape(2, 5, -1)


def test_attention_with_shared_keys_wide_heads_and_biases_of_ones_own() -> None:
    biases = (True, False, True, False)
    got, p = run(lambda m, x, _: attention(m, x, heads=4, kv_heads=2, width=5, biases=biases, causal=True, out=7))
    assert sorted(k for k in p if k.endswith("bias")) == ["q_proj.bias", "v_proj.bias"]
    x = torch.from_numpy(X)
    q, k, v = (heads(project(p, n, x), c) for n, c in (("q_proj", 4), ("k_proj", 2), ("v_proj", 2)))
    want = project(p, "o_proj", attended(q, k, v, is_causal=True))
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)
    assert got.shape == (2, 5, 7)


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_one_projection_for_q_k_and_v(by_head: bool, transposed: bool) -> None:
    packed, names = Packed("qkv", by_head), ("", "", "", "out")
    got, p = run(
        lambda m, x, _: attention(m, x, heads=3, packed=packed, names=names, biases=True, transposed=transposed)
    )
    if transposed:
        p |= {k: v.T for k, v in p.items() if k.endswith("weight")}
    y = project(p, "qkv", torch.from_numpy(X))
    parts = heads(y, 3).chunk(3, -1) if by_head else [heads(part, 3) for part in y.chunk(3, -1)]
    np.testing.assert_allclose(got, project(p, "out", attended(*parts)).numpy(), atol=1e-5)


def test_norms_come_before_rotation_and_keys_may_come_from_elsewhere() -> None:
    def layer(m: Scope, x: Value, places: Value) -> Value:
        seen: list[str] = []

        def norm(name: str, y: Value) -> Value:
            seen.append(name)
            return unit_rms_norm(m, name, y, 1e-6)

        def rotate(y: Value) -> Value:
            assert seen == ["q_norm", "k_norm"]
            return y + 1.0

        names = ("q", "k", "v", "")
        return attention(m, x, memory=x * 2.0, heads=2, norm=norm, rotate=rotate, names=names)

    got, p = run(layer)
    x = torch.from_numpy(X)
    rms = lambda y: torch.nn.functional.rms_norm(y, (6,), eps=1e-6) + 1  # noqa: E731
    q, k = rms(heads(project(p, "q", x), 2)), rms(heads(project(p, "k", 2 * x), 2))
    want = attended(q, k, heads(project(p, "v", 2 * x), 2))
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


def test_feed_forwards() -> None:
    got, p = run(lambda m, x, _: feed_forward(m, x, 20, "gelu_new", bias=True))
    y = torch.nn.functional.gelu(project(p, "up_proj", torch.from_numpy(X)), approximate="tanh")
    np.testing.assert_allclose(got, project(p, "down_proj", y).numpy(), atol=1e-5)
    got, p = run(lambda m, x, _: gated_feed_forward(m, x, 20, "silu"))
    y = torch.nn.functional.silu(project(p, "gate_proj", torch.from_numpy(X)))
    y = y * project(p, "up_proj", torch.from_numpy(X))
    np.testing.assert_allclose(got, project(p, "down_proj", y).numpy(), atol=1e-5)


def test_a_part_of_each_head_is_rotated() -> None:
    def layer(m: Scope, x: Value, places: Value) -> Value:
        return rotary(m, places, 6, theta=50.0, partial=0.7, interleaved=True)(x.split_heads(2)).merge_heads()

    got, _ = run(layer)
    angle = torch.arange(5)[:, None] * 50.0 ** (-torch.arange(0, 4, 2) / 4)
    turned = torch.from_numpy(X).reshape(2, 5, 2, 6)
    pairs = torch.view_as_complex(turned[..., :4].reshape(2, 5, 2, 2, 2).contiguous())
    pairs = pairs * torch.polar(torch.ones_like(angle), angle)[:, None]
    want = torch.cat([torch.view_as_real(pairs).flatten(-2), turned[..., 4:]], -1)
    np.testing.assert_allclose(got, want.reshape(2, 5, 12).numpy(), atol=1e-5)


YARN = {"rope_type": "yarn", "factor": 4.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a base": {"rope_theta": 70.0},
    "old name": {"rope_theta": 70.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "both": {"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}, "rope_scaling": {**YARN}},
    "base inside wins": {"rope_theta": 70.0, "rope_parameters": {"rope_type": "default", "rope_theta": 9.0}},
    "first length": {"rope_parameters": {**YARN}},
    "first length said": {"rope_parameters": {**YARN, "original_max_position_embeddings": 16}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_precedence_of_rotary_settings_is_that_of_transformers(name: str) -> None:
    given = SETTINGS[name]
    theirs = transformers.LlamaConfig.from_dict({"max_position_embeddings": 64, **given}).rope_parameters
    read = {"rope_scaling": None, "rope_parameters": None, **given}
    config = SimpleNamespace(theta=given.get("rope_theta", 10000.0), max_positions=64, **read)
    found = rope_settings(config)
    scaling = {k: v for k, v in found["scaling"].items() if k != "type"}
    kind = found["scaling"].get("type", "default")
    assert {"rope_type": kind, **scaling, "rope_theta": found["theta"]} == {
        k: v for k, v in theirs.items() if k != "type"
    }


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="width 12 is not a multiple of 5 heads"):
        run(lambda m, x, _: attention(m, x, heads=5))
    with pytest.raises(ConfigError, match="qkv packs q, k and v by head, so 4 heads cannot share 2 keys"):
        run(lambda m, x, _: attention(m, x, heads=4, kv_heads=2, packed=Packed("qkv", by_head=True)))
