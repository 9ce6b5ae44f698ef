"""What ONNX Runtime cannot compute as it is written: said in another way, or refused before it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import onnxruntime as ort
import pytest
import torch
from monograph import ops
from monograph.backends.onnx import lower, save
from monograph.backends.onnxruntime import build
from monograph.backends.onnxruntime import open as open_session
from monograph.ir import Graph, building, interpret, tensor
from monograph.ir.errors import RuntimeInputError
from monograph.ir.types import f32
from monograph.ir.weights import Weights


class Sizes(mg.Config):
    vocab: int = 19
    heads: int = 2
    scale: float = 1.0


@mg.model
def scaled(m: mg.Scope, c: Sizes, input_ids: mg.Value, attention_mask: mg.Value, position_ids: mg.Value) -> mg.Value:
    x = m.embed("e", input_ids, c.vocab, 16)
    q, k, v = (m.linear(n, x, 16).split_heads(c.heads) for n in "qkv")
    q, k = (m.rope(y, position_ids, theta=100.0) for y in (q, k))
    y = ops.attention(q, k, v, mask=mg.key_mask(attention_mask), causal=True, scale=c.scale)
    return m.linear("head", x + m.linear("o", y.merge_heads(), 16), c.vocab)


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("scale", [0.0, -0.5, -1e-9, 1e-30])
def test_scales_of_attention(scale: float, heads: int, tmp_path: Path) -> None:
    """0 and less are refused by Attention-23, and mean the default for other kernels of the runtime."""
    model = scaled(scale=scale, heads=heads)
    first = Weights.initialize(model.graph())
    model.weights = Weights.of({k: first.numpy(k) * (1 if "norm" in k else 20) for k in first})
    for opset in (22, 23):
        assert mg.verify(model, mg.export(model, tmp_path / str(opset), opset=opset), torch=False).passed
    with mg.build(model, tmp_path / "cpu", threads=1) as engine:
        assert mg.verify(model, engine).passed


@pytest.mark.parametrize("scale", [0.0, -2.0])
def test_a_graph_that_is_lowered_as_it_is(scale: float, tmp_path: Path) -> None:
    graph = Graph("g")
    with building(graph):
        q, k, v = (graph.input(n, tensor(f32, 1, 3, 2, 8)) for n in "qkv")
        graph.output("y", ops.attention(q, k, v, scale=scale))
    given: dict[str, Any] = {n: np.random.default_rng(0).normal(size=(1, 3, 2, 8)).astype(np.float32) for n in "qkv"}
    path = save(lower(graph, {}, 23), tmp_path / "model.onnx")
    found = ort.InferenceSession(str(path)).run(None, given)[0]
    np.testing.assert_allclose(found, interpret(graph, given)["y"], atol=1e-6)


def test_no_keys_at_all(tmp_path: Path) -> None:
    """The reference and PyTorch give zeros; Attention-23 refuses it, and the runtime reduces an empty axis wrongly."""
    graph = Graph("g")
    with building(graph):
        q = graph.input("q", tensor(f32, "B", "S", 2, 8))
        k, v = (graph.input(n, tensor(f32, "B", "T", 2, 8)) for n in "kv")
        graph.output("y", ops.attention(q, k, v))
    empty = np.zeros((1, 0, 2, 8), np.float32)
    given = {"q": np.ones((1, 3, 2, 8), np.float32), "k": empty, "v": empty}
    assert not interpret(graph, given)["y"].any()
    build(graph, {}, tmp_path / "built")
    with pytest.raises(RuntimeInputError, match=r"k has shape \[1, 0, 2, 8\], expected at least 1 on every axis"):
        open_session(tmp_path / "built", threads=1).run(given)


@pytest.mark.parametrize("ids", [[[1, 19]], [[-1, 2]], [[2**40]], [[0, 18, 19, 20]], [[-(2**62)]]])
def test_ids_beyond_the_table(ids: list[list[int]], tmp_path: Path) -> None:
    model = scaled()
    model.weights = Weights.initialize(model.graph())
    x = np.array(ids)
    given = {"input_ids": x, "attention_mask": np.ones_like(x), "position_ids": np.zeros_like(x)}
    with pytest.raises(RuntimeInputError, match=r"input_ids holds -?\d+, but the model has 19, 0 to 18"):
        mg.to_torch(model)(**{k: torch.as_tensor(v) for k, v in given.items()})
    with (
        mg.build(model, tmp_path / "cpu", threads=1) as engine,
        pytest.raises(RuntimeInputError, match="input_ids holds"),
    ):
        engine.run(given)
