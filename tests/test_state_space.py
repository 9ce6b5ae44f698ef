"""Mixers with a state of fixed size: many tokens at once give what they give one by one, whatever is padding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir
import onnxruntime as ort
import pytest
import torch
from monograph.backends.onnx import lower
from monograph.backends.torch import to_inputs, to_torch
from monograph.ir import Graph, building, interpret, ops
from monograph.ir.ops.state_space import CHUNK
from monograph.ir.types import f64, parse_type
from monograph.ir.weights import Weights
from op_cases import CASES

B, S = 3, 7
MASKS = {
    "all": np.ones((B, S), bool),
    "left": np.arange(S) >= np.array([[0], [3], [6]]),
    "right": np.arange(S) < np.array([[7], [4], [1]]),
    "holes": np.random.default_rng(3).random((B, S)) < 0.5,
    "nothing": np.zeros((B, S), bool),
}
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def convolution() -> Graph:
    graph = Graph("convolution")
    with building(graph):
        x, mask = graph.input("x", parse_type("f64[B,S,4]")), graph.input("mask", parse_type("bool[B,S]"))
        tail, w = graph.input("state", parse_type("f64[B,3,4]")), graph.input("w", parse_type("f64[4,4]"))
        y, last = ops.causal_conv(x, w, tail=tail, mask=mask)
    graph.output("y", y)
    graph.output("last", last)
    return graph


def space() -> Graph:
    """Steps that are padding add nothing and keep everything."""
    graph = Graph("space")
    with building(graph):
        x, mask = graph.input("x", parse_type("f64[B,S,2,3]")), graph.input("mask", parse_type("bool[B,S]"))
        decay, state = graph.input("decay", parse_type("f64[B,S,2]")), graph.input("state", parse_type("f64[B,2,3,5]"))
        b, c = (graph.input(name, parse_type("f64[B,S,1,5]")) for name in "bc")
        counts = ops.reshape(ops.cast(mask, dtype=f64), shape=(*mask.shape, 1))
        wide = ops.reshape(counts, shape=(*mask.shape, 1, 1))
        y, last = ops.state_space(x * wide, decay * counts, b, c, state)
        graph.output("y", y * wide)
    graph.output("last", last)
    return graph


def given(graph: Graph, mask: Array, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    sizes = {"B": B, "S": S}
    made = {k: rng.normal(size=v.type.substitute(sizes).shape) for k, v in graph.inputs.items()}
    made |= {"decay": -np.abs(made["decay"]) * 20} if "decay" in made else {}
    return made | {"mask": mask}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("make", [convolution, space])
@pytest.mark.parametrize("pieces", [[1] * S, [5, 2], [2, 1, 4]], ids=str)
def test_pieces_give_what_the_whole_gives(make: Callable[[], Graph], mask: str, pieces: list[int]) -> None:
    graph = make()
    inputs = given(graph, MASKS[mask])
    whole = interpret(graph, inputs)
    state, made, at = inputs["state"], [], 0
    for n in pieces:
        part = {k: v[:, at : at + n] if k not in ("state", "w") else v for k, v in inputs.items()}
        found = interpret(graph, part | {"state": state})
        state, at = found["last"], at + n
        made.append(found["y"])
    np.testing.assert_allclose(np.concatenate(made, 1), whole["y"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(state, whole["last"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [convolution, space])
def test_padding_leaves_the_state_and_the_other_tokens_as_they_are(make: Callable[[], Graph]) -> None:
    graph = make()
    inputs = given(graph, MASKS["holes"])
    found = interpret(graph, inputs)
    for row in range(B):
        kept = MASKS["holes"][row]
        alone = {
            k: v if k == "w" else v[row : row + 1] if k == "state" else v[row : row + 1, kept]
            for k, v in inputs.items()
        }
        wanted = interpret(graph, alone)
        np.testing.assert_allclose(found["y"][row, kept], wanted["y"][0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(found["last"][row], wanted["last"][0], rtol=0, atol=1e-12)


def test_a_long_decay_loses_no_digit() -> None:
    """The decays add up to -2.5e5: as a difference of two such sums the last ones would keep no digit in f32."""
    steps = 256
    graph = Graph("long")
    with building(graph):
        x, decay = graph.input("x", parse_type("f32[1,S,1,1]")), graph.input("decay", parse_type("f32[1,S,1]"))
        one = ops.constant(value=1.0, dtype=x.dtype)
        b = ops.expand(one, shape=(1, x.shape[1], 1, 1))
        y, _ = ops.state_space(x, decay, b, b)
    graph.output("y", y)
    decays = np.full((1, steps, 1), -1000.0, np.float32)
    decays[:, -3:] = -0.001
    found = interpret(graph, {"x": np.ones((1, steps, 1, 1), np.float32), "decay": decays})["y"]
    wanted = 1 + np.exp(-0.001) + np.exp(-0.002) + np.exp(-0.003)
    np.testing.assert_allclose(found[0, -1, 0, 0], wanted, rtol=1e-6)


def test_equal_scores_are_taken_in_order() -> None:
    graph = Graph("equal")
    values, indices = ops.topk(graph.input("x", parse_type("i64[B,5]")), k=3)
    graph.output("values", values)
    graph.output("indices", indices)
    found = interpret(graph, {"x": np.array([[1, 2, 2, 1, 2]])})
    assert (found["values"].tolist(), found["indices"].tolist()) == ([[2, 2, 2]], [[1, 2, 4]])


def test_chunks_in_pytorch_give_what_the_whole_gives() -> None:
    graph = space()
    rng = np.random.default_rng(5)
    inputs = {k: rng.normal(size=v.type.substitute({"B": 2, "S": 150}).shape) for k, v in graph.inputs.items()}
    inputs |= {"decay": -np.abs(inputs["decay"]) * 0.1, "mask": rng.random((2, 150)) < 0.9}
    wanted = interpret(graph, inputs)
    found = to_torch(graph)(**to_inputs(inputs))
    for name, want in wanted.items():
        np.testing.assert_allclose(found[name].numpy(), want, rtol=0, atol=1e-11)


def test_chunks_in_onnx_give_what_the_whole_gives() -> None:
    case = next(c for c in CASES if str(c) == "state_space-state")
    graph, rng = case.graph(symbolic=True), np.random.default_rng(5)
    file = onnx_ir.to_proto(lower(graph, Weights.of({}))).SerializeToString()
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    for steps in (1, CHUNK, 150):
        sizes = {"B": 2, "S": steps}
        shapes = {k: v.type.substitute(sizes).shape for k, v in graph.inputs.items()}
        inputs = {k: rng.normal(size=shape).astype(np.float32) for k, shape in shapes.items()}
        inputs |= {"decay": -np.abs(inputs["decay"]) * 0.1}
        for found, want in zip(session.run(None, inputs), interpret(graph, inputs).values(), strict=True):
            np.testing.assert_allclose(found, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_a_compiler_sees_no_break_in_experts_and_states() -> None:
    graph = space()
    with building(graph):
        x = graph.input("tokens", parse_type("f64[B,S,4]"))
        weights, indices = ops.topk(x, k=2)
        shapes = ("f64[5,4]", "f64[5,4]", "f64[4,5]") * 4
        experts = [graph.input(f"w{i}", parse_type(t)) for i, t in enumerate(shapes)]
        graph.output("mixed", ops.moe(x, weights, indices, *experts))
    inputs = to_inputs(given(graph, MASKS["holes"]))
    module = to_torch(graph)
    torch._dynamo.reset()
    found = torch.compile(module, backend="eager", fullgraph=True)(**inputs)
    for name, want in module(**inputs).items():
        np.testing.assert_allclose(found[name].numpy(), want.numpy(), rtol=0, atol=1e-12)
