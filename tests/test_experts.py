"""Experts read the tokens that chose them and no others, in PyTorch and in ONNX; checkpoints may stack them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import onnxruntime as ort
import torch
from monograph.backends.onnx import lower
from monograph.backends.torch import to_inputs, to_torch
from monograph.frontends.experts import by_expert
from monograph.ir import Graph, interpret, ops
from monograph.ir.types import parse_type
from monograph.ir.weights import Weights

EXPERTS, WIDTH, HIDDEN = 4, 6, 5


def layer() -> Graph:
    """x [B,S,C] through two of four experts."""
    graph = Graph("layer")
    x = graph.input("x", parse_type(f"f32[B,S,{WIDTH}]"))
    weights = graph.input("weights", parse_type("f32[B,S,2]"))
    indices = graph.input("indices", parse_type("i64[B,S,2]"))
    shapes = (f"f32[{HIDDEN},{WIDTH}]", f"f32[{HIDDEN},{WIDTH}]", f"f32[{WIDTH},{HIDDEN}]")
    experts = [graph.param(f"{i}.{j}", parse_type(t)) for i in range(EXPERTS) for j, t in enumerate(shapes)]
    graph.output("y", ops.moe(x, weights, indices, *experts))
    return graph


def given(last: int = EXPERTS) -> tuple[dict[str, Any], dict[str, Any]]:
    """(inputs whose experts are below `last`, parameters)."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    first = rng.integers(0, last, (2, 3, 1))
    inputs = {
        "x": draw(2, 3, WIDTH),
        "weights": draw(2, 3, 2),
        "indices": np.concatenate([first, (first + 1) % last], 2),
    }
    return inputs, {k: draw(*v.shape) for k, v in layer().params.items()}


def test_what_nobody_chose_is_not_read() -> None:
    inputs, params = given(last=3)
    wanted = interpret(layer(), inputs, params)["y"]
    broken = params | {k: np.full_like(v, np.nan) for k, v in params.items() if k.startswith("3.")}
    weights = Weights.of(broken)
    found = to_torch(layer(), weights)(**to_inputs(inputs))["y"].detach().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    file = onnx_ir.to_proto(lower(layer(), weights)).SerializeToString()
    found = ort.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, inputs)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_what_nobody_chose_is_zero() -> None:
    inputs, params = given(last=3)
    module = to_torch(layer(), Weights.of(params))
    module(**to_inputs(inputs))["y"].square().sum().backward()
    gradients = {k: p.grad for k, p in module.named_parameters()}
    assert all(g is not None for g in gradients.values())
    assert all(bool(torch.all(g == 0)) == k.startswith("3.") for k, g in gradients.items())


def test_flops_are_those_of_the_chosen() -> None:
    (node,) = layer()
    once = 2 * WIDTH * HIDDEN * 3 + 4 * HIDDEN + 2 * WIDTH
    assert str(node.op.flops(*node.operands, **node.attributes)) == str(parse_type("f32[B,S]").elements * 2 * once)


def test_stacked_experts_are_cut_when_read() -> None:
    rng = np.random.default_rng(1)
    stacked = {
        "a.experts.gate_up_proj": rng.standard_normal((EXPERTS, 2 * HIDDEN, WIDTH)).astype(np.float32),
        "a.experts.down_proj": rng.standard_normal((EXPERTS, WIDTH, HIDDEN)).astype(np.float32),
        "a.gate.weight": rng.standard_normal((EXPERTS, WIDTH)).astype(np.float32),
    }
    found = by_expert(Weights.of(stacked), ("w1", "w3", "w2"))
    assert len(found) == 1 + 3 * EXPERTS
    both, down = stacked["a.experts.gate_up_proj"][2], stacked["a.experts.down_proj"][2]
    np.testing.assert_array_equal(found.numpy("a.experts.2.w1.weight"), both[:HIDDEN])
    np.testing.assert_array_equal(found.numpy("a.experts.2.w3.weight"), both[HIDDEN:])
    np.testing.assert_array_equal(found.numpy("a.experts.2.w2.weight"), down)
