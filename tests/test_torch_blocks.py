"""Layers as submodules compute what the flat module does, under the same parameter names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monograph.backends.torch import to_inputs, to_torch
from monograph.frontends.dsl import Config, Model, Scope, Value, load_family, model
from monograph.ir import Graph, ops
from monograph.passes.pipelines import train
from monograph.training.loss import with_loss
from torch import fx

pytestmark = pytest.mark.slow

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"vocab": 48, "dim": 32, "ffn": 48, "layers": 3, "heads": 4, "kv_heads": 2, "tied": True},
    "gpt2": {"vocab": 48, "dim": 32, "layers": 2, "heads": 4, "max_positions": 32},
    "transformer2017": {"vocab": 48, "dim": 32, "ffn": 48, "heads": 4},
}


class Shared(Config):
    dim: int = 16


@model
def shared(m: Scope, c: Shared, input_ids: Value) -> Value:
    x = m.embed("embed", input_ids, 48, c.dim)
    for b in m.layers("layers", 3):
        x = x + ops.gelu(b.linear("up", x, c.dim, tie="layers.0.up" if b.path != "layers.0" else None))
        x = b.rms_norm("norm", x, 1e-6)
    return m.linear("head", x, 48)


def batch(graph: Graph) -> dict[str, torch.Tensor]:
    generator = np.random.default_rng(0)
    given = {k: generator.integers(0, 48, (2, 7)) for k in graph.inputs}
    for k in given:
        if k.endswith("mask"):
            given[k] = np.array([[1] * 7, [1] * 5 + [0] * 2])
        if k.endswith("position_ids"):
            given[k] = np.broadcast_to(np.arange(7), (2, 7)).copy()
    return to_inputs(given)


def gradients(module: torch.nn.Module, given: dict[str, torch.Tensor]) -> dict[str, Any]:
    torch.manual_seed(0)
    loss = module(**given)["loss"]
    loss.backward()
    return {"loss": loss.detach(), **{k: p.grad for k, p in module.named_parameters()}}


def blocks(module: torch.nn.Module) -> list[str]:
    return [k for k, m in module.named_modules() if k and isinstance(m, fx.GraphModule)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_compute_the_same(family: str, training: bool) -> None:
    source: Model = load_family(family)(**FAMILIES[family])
    graph = train(with_loss(source.graph()))
    flat, deep = (to_torch(graph, seed=1, blocks=b).train(training) for b in (False, True))
    assert set(dict(flat.named_parameters())) == set(dict(deep.named_parameters()))
    given = batch(graph)
    expected, found = gradients(flat, given), gradients(deep, given)
    assert expected.keys() == found.keys()
    for k, x in expected.items():
        assert torch.equal(x, found[k]), k
    layers = [f"model.layers.{i}" for i in range(3)]
    if family == "llama":
        assert blocks(deep) == layers
        assert not any(".layers." in str(n.target) and n.op == "get_attr" for n in deep.graph.nodes)
    assert blocks(flat) == []
    assert len(blocks(deep)) >= 2


def test_a_layer_whose_weights_are_read_elsewhere_is_no_block() -> None:
    graph = train(with_loss(shared().graph()))
    flat, deep = (to_torch(graph, seed=1, blocks=b) for b in (False, True))
    assert blocks(deep) == ["layers.1", "layers.2"], "layers.0.up is read by all three"
    given = batch(graph)
    expected, found = gradients(flat, given), gradients(deep, given)
    assert set(found) == set(expected)
    assert all(torch.equal(x, found[k]) for k, x in expected.items())
