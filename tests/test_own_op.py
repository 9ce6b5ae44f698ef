"""Ops, rewrites and models from outside the package work everywhere, with no registration but the import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import onnxruntime
import pytest
import torch
from monograph.backends.onnx import export
from monograph.backends.onnxruntime import build
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.torch import to_torch
from monograph.backends.torch.lower import prepare
from monograph.ir import Graph, Init, Op, TensorType, Value, building, interpret, op, ops, parse, print_graph, verify
from monograph.ir.errors import OpError
from monograph.ir.layout import Layout
from monograph.ir.types import Dim, f16, f32, i64, tensor
from monograph.ir.weights import Weights
from monograph.passes.differential import difference
from monograph.passes.pattern import apply_rewrites
from monograph.passes.pipelines import PIPELINES, optimize
from monograph.passes.recompute import recompute
from monograph.passes.shard import plan
from monograph.passes.shard_apply import local_graph
from own_ops import MishSpelledOut, floor_to, gate, halves, hard_swish, mish

WIDTH, HEADS, VOCAB = 16, 2, 13
OWN = {"mish", "hard_swish", "floor_to", "halves", "gate"}


def decoder() -> Graph:
    """One attention layer, and every own op around it."""
    graph = Graph("own")
    with building(graph):
        ids = graph.input("input_ids", tensor(i64, "B", "S"))
        mask = mg.key_mask(graph.input("attention_mask", tensor(i64, "B", "S")))

        def weight(name: str, *shape: int) -> Value:
            return graph.param(f"model.{name}.weight", tensor(f32, *shape), Init("normal", 0.3))

        x = ops.embedding(ids, weight("embed", VOCAB, WIDTH))
        q, k, v = (ops.linear(x, weight(n, WIDTH, WIDTH)).split_heads(HEADS) for n in ("q_proj", "k_proj", "v_proj"))
        x = x + ops.linear(ops.attention(q, k, v, mask=mask, causal=True).merge_heads(), weight("o_proj", WIDTH, WIDTH))
        x = x + ops.linear(gate(x, weight("w", 24, WIDTH), weight("v", 24, WIDTH)), weight("down", WIDTH, 24))
        first, last = halves(hard_swish(mish(x)))
        x = ops.concat(floor_to(first, step=0.25), last, axis=-1)
        graph.output("logits", ops.linear(x, weight("lm_head", VOCAB, WIDTH)))
    return verify(graph)


def given(batch: int = 2, length: int = 5) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    mask = np.ones((batch, length), np.int64)
    mask[0, :2] = 0
    return {"input_ids": rng.integers(0, VOCAB, (batch, length)), "attention_mask": mask}


def expected(graph: Graph, weights: Weights, inputs: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return interpret(graph, inputs, {k: weights[k].numpy() for k in weights})["logits"]


def close(found: Any, wanted: Any) -> bool:
    """Equal but for values that rounding moved over the edge of a step."""
    return bool(np.mean(np.abs(found - wanted) > 1e-4) < 0.05)


def test_own_ops_print_and_parse() -> None:
    graph = decoder()
    assert print_graph(parse(print_graph(graph))) == print_graph(graph)
    assert set(graph.counts()) >= OWN


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_computes_the_same(name: str) -> None:
    graph = decoder()
    optimize(graph, name, check=difference)


def test_pytorch_runs_and_trains_them() -> None:
    graph = decoder()
    weights = Weights.initialize(graph, seed=3)
    inputs = given()
    kept = {node.op.name for node in prepare(graph)}
    assert {"hard_swish", "floor_to"} <= kept
    assert not {"mish", "halves", "gate"} & kept
    module = to_torch(graph, weights)
    logits = module(**{k: torch.from_numpy(v) for k, v in inputs.items()})["logits"]
    assert close(logits.detach().numpy(), expected(graph, weights, inputs))
    logits.square().mean().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_a_memory_plan_knows_them() -> None:
    ready, sizes = prepare(decoder()), {"B": 2, "S": 5}
    full = recompute(ready, sizes, 10**12)
    assert recompute(ready, sizes, full.bytes_before // 2).bytes_after <= full.bytes_before // 2
    layout = Layout(ready, sizes)
    floor = next(n for n in ready if n.op.name == "floor_to")
    assert floor.value("x") in layout.saved(floor).values


def test_ranks_share_a_composite_of_a_user() -> None:
    graph = decoder()
    shared = plan(graph, 2)
    assert {"model.w.weight", "model.v.weight", "model.down.weight"} <= set(shared.splits)
    assert verify(local_graph(shared, 1)).params["model.w.weight"].shape == (12, WIDTH)


@pytest.mark.parametrize("opset", [20, 23])
def test_portable_onnx(opset: int, tmp_path: Path) -> None:
    graph = decoder()
    weights = Weights.initialize(graph, seed=3)
    path = export(optimize(graph, "encode")[0], weights, tmp_path, opset)
    found = onnxruntime.InferenceSession(path).run(["logits"], given())[0]
    assert close(found, expected(graph, weights, given()))


def test_onnx_runtime_decodes_with_them(tmp_path: Path) -> None:
    graph = decoder()
    weights = Weights.initialize(graph, seed=3)
    build(graph, weights, tmp_path, max_positions=32)
    session = open_session(tmp_path)
    tokens = given()["input_ids"]
    wanted = expected(graph, weights, {"input_ids": tokens, "attention_mask": np.ones_like(tokens)})
    found = [session.prefill(tokens[:, :3], [3, 3]), *(session.step(tokens[:, i]) for i in (3, 4))]
    for at, logits in zip((2, 3, 4), found, strict=True):
        assert close(np.asarray(logits).reshape(2, -1), wanted[:, at])


def test_a_rewrite_of_a_user_fuses() -> None:
    graph = Graph("spelled")
    x = graph.input("x", tensor(f32, "S"))
    graph.output("y", x * ops.tanh(ops.log(ops.exp(x) + 1.0)))
    assert apply_rewrites(graph, [MishSpelledOut()]).counts == {"MishSpelledOut": 1}
    assert graph.counts() == {"mish": 1}


# -- whose mistake it is -----------------------------------------------------------------------------------------


class BrokenInfer(Op):
    """Its author forgot that a Value has no `size`."""

    def infer(self, x: Value) -> TensorType:
        return TensorType(x.dtype, x.size)  # type: ignore[attr-defined]

    def body(self, x: Value) -> Value:
        return x


class BrokenBody(Op):
    """Its author adds a shape to a value."""

    def infer(self, x: Value) -> TensorType:
        return x.type

    def body(self, x: Value) -> Value:
        return len(x.dtype)  # type: ignore[arg-type,return-value]


broken_infer, broken_body = op(BrokenInfer), op(BrokenBody)


def test_a_mistake_of_the_author_shows_its_own_traceback() -> None:
    graph = Graph("broken")
    x = graph.input("x", tensor(f32, "S"))
    with pytest.raises(AttributeError, match="size") as e:
        broken_infer(x)
    assert [t.name for t in e.traceback][-2:] == ["infer", "__getattr__"]
    graph.output("y", broken_body(x))
    with pytest.raises(TypeError, match="has no len") as e:
        interpret(graph, {"x": np.zeros(3, np.float32)})
    assert e.traceback[-1].name == "body"
    with pytest.raises(TypeError, match="has no len"):
        to_torch(graph)


class Unimported(Op):
    """Its author imports a type for the checker only."""

    def infer(self, x: Value) -> "Missing":  # type: ignore[name-defined]  # noqa: F821, UP037
        return x.type

    def body(self, x: Value) -> Value:
        return x


def test_a_type_that_is_there_for_the_checker_only_is_named() -> None:
    with pytest.raises(mg.MonographError, match="op unimported: Missing in an annotation of `infer` is not there"):
        op(Unimported)(Graph("g").input("x", tensor(f32, 3)))


def test_a_mistake_of_the_user_is_told_with_its_place() -> None:
    graph = Graph("misused")
    x = graph.input("x", tensor(f32, 3))
    with pytest.raises(OpError, match=r"test_own_op.py:\d+: halves: x has 3 channels, expected even"):
        halves(x)
    with pytest.raises(OpError, match=r"floor_to: attribute step is 'a', expected float"):
        floor_to(x, step="a")  # type: ignore[arg-type]
    with pytest.raises(OpError, match=r"floor_to: has no attribute 'stepp', did you mean 'step'\?"):
        floor_to(x, stepp=1.0)  # type: ignore[call-arg]


def test_canonical_forms_stay_within_the_dtype() -> None:
    graph = Graph("narrow")
    x = graph.input("x", tensor(f16, Dim.symbol("S")))
    for i, number in enumerate((1e-5, 6e4, 8.0, 0.0)):
        graph.output(f"y{i}", x / number)
    before = graph.copy()
    PIPELINES["clean"].run(graph)
    assert graph.counts()["div"] == 3
    array = np.array([1e-4, 0.5, 3.0], np.float16)
    for name, y in interpret(before, {"x": array}).items():
        assert np.array_equal(interpret(graph, {"x": array})[name], y, equal_nan=True)
