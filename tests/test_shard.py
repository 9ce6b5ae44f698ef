"""Tensor parallelism from the graph: the plan, one rank's graph, all ranks together, and what cannot be shared."""

from __future__ import annotations

import threading
from contextvars import copy_context
from typing import Any

import numpy as np
import pytest
from monograph.frontends.dsl import Config, Model, Scope, Value, load_family, model
from monograph.ir import Graph, interpret, ops, verify
from monograph.ir.errors import ConfigError, PassError
from monograph.ir.graph import building
from monograph.ir.ops import cross_entropy
from monograph.ir.types import TensorType, i64
from monograph.ir.weights import Weights
from monograph.passes import pipelines
from monograph.passes.collectives import ADD
from monograph.passes.lora import add_lora
from monograph.passes.shard import plan
from monograph.passes.shard_apply import local_graph

SMALL: dict[str, dict[str, Any]] = {
    "llama": {"vocab": 48, "dim": 32, "ffn": 48, "layers": 2, "heads": 8, "kv_heads": 4, "attention_bias": True},
    "gpt2": {"vocab": 48, "dim": 32, "layers": 2, "heads": 4, "max_positions": 32},
    "bert": {"vocab": 48, "dim": 32, "ffn": 64, "layers": 2, "heads": 4, "max_positions": 32},
    "transformer2017": {"vocab": 48, "dim": 32, "ffn": 48, "heads": 4},
}


class Normed(Config):
    dim: int = 16


@model
def normed(m: Scope, c: Normed, input_ids: Value) -> Value:
    x = m.embed("embed", input_ids, 48, c.dim)
    q, k = (m.rms_norm(f"{n}_norm", m.linear(n, x, c.dim).split_heads(4), 1e-6) for n in "qk")
    y = ops.attention(q, k, m.linear("v", x, c.dim).split_heads(4), causal=True)
    return m.linear("head", x + m.linear("o", y.merge_heads(), c.dim), 48)


def small(family: str, **changes: Any) -> Model:
    return load_family(family)(**{**SMALL[family], **changes})


def inputs(graph: Graph, batch: int = 2, length: int = 7) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    given = {k: generator.integers(0, 2, (batch, length)) for k in graph.inputs}
    for k in given:
        if k.endswith("attention_mask"):
            given[k] = np.array([[1] * length, [1] * (length - 2) + [0] * 2])
        elif k.endswith("position_ids"):
            given[k] = np.broadcast_to(np.arange(length), (batch, length)).copy()
        elif k.endswith("input_ids"):
            given[k] = generator.integers(0, 48, (batch, length))
    return given


def together(graph: Graph, size: int, weights: Weights, given: dict[str, Any], pipeline: bool) -> list[dict[str, Any]]:
    """Outputs of every rank, the ranks running side by side with an array sum between them."""
    found = plan(graph, size)
    barrier, slots = threading.Barrier(size), [None] * size
    results: list[Any] = [None] * size

    def rank(i: int) -> None:
        def total(x: Any) -> Any:
            slots[i] = x
            barrier.wait(30)
            added = sum(slots)  # type: ignore[arg-type]
            barrier.wait(30)
            return added

        ADD.set(total)
        local = local_graph(found, i)
        verify(local)
        if pipeline:
            local = pipelines.train(local)
        part = found.take(weights, i)
        results[i] = interpret(local, given, lambda path: part[path].numpy())

    threads = [threading.Thread(target=copy_context().run, args=(rank, i)) for i in range(size)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return results


@pytest.mark.parametrize("pipeline", [False, True])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("family", SMALL)
def test_all_ranks_together_are_the_model(family: str, size: int, pipeline: bool) -> None:
    graph = small(family).graph()
    weights = Weights.initialize(graph, 1)
    biased = {k: t if not k.endswith("bias") else Weights.initialize(graph, 2)[k] for k, t in weights.items()}
    given = inputs(graph)
    expected = interpret(graph, given, {k: t.numpy() for k, t in biased.items()})
    for found in together(graph, size, Weights(biased), given, pipeline):
        assert found.keys() == expected.keys()
        for k, x in expected.items():
            np.testing.assert_allclose(found[k], x, atol=2e-6)


def test_plan_of_llama() -> None:
    found = plan(small("llama", layers=1, attention_bias=False, ffn=32).graph(), 2)
    layer = "model.layers.0"
    assert {k.removeprefix(f"{layer}."): (s.kind, s.axis) for k, s in found.splits.items()} == {
        "self_attn.q_proj.weight": ("column", 0),
        "self_attn.k_proj.weight": ("column", 0),
        "self_attn.v_proj.weight": ("column", 0),
        "self_attn.o_proj.weight": ("row", 1),
        "mlp.gate_proj.weight": ("column", 0),
        "mlp.up_proj.weight": ("column", 0),
        "mlp.down_proj.weight": ("row", 1),
    }
    assert found.splits[f"{layer}.mlp.up_proj.weight"].why == f"element by element, up to {layer}.mlp.down_proj.weight"
    assert found.splits[f"{layer}.self_attn.k_proj.weight"].why == f"per head, up to {layer}.self_attn.o_proj.weight"
    assert list(found.left) == ["lm_head.weight"]
    assert [row["cut"] for row in found.rows()] == ["column"] * 3 + ["row"] + ["column"] * 2 + ["row", "whole"]


def test_packed_projection_is_cut_in_sections() -> None:
    found = plan(small("gpt2", layers=1).graph(), 2)
    packed = found.splits["transformer.h.0.attn.c_attn.weight"]
    assert (packed.kind, packed.axis, packed.sections) == ("column", 1, (32, 32, 32))
    assert packed.pieces(1, 2) == [(16, 16), (48, 16), (80, 16)]
    assert found.splits["transformer.h.0.attn.c_attn.bias"].pieces(0, 2) == [(0, 16), (32, 16), (64, 16)]
    assert found.splits["transformer.h.0.attn.c_proj.weight"].kind == "row"
    assert "transformer.h.0.attn.c_proj.bias" not in found.splits, "it is added once, after the sum"


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("size", [2, 4])
def test_parts_join_to_the_whole(family: str, size: int) -> None:
    graph = small(family).graph()
    found, weights = plan(graph, size), Weights.initialize(graph, 1)
    parts = [found.take(weights, i) for i in range(size)]
    assert found.splits
    for path, split in found.splits.items():
        local = [part[path].numpy() for part in parts]
        assert sum(x.size for x in local) == weights[path].numpy().size
        np.testing.assert_array_equal(split.join(local), weights[path].numpy())


def test_local_graph_of_a_rank() -> None:
    graph = small("llama", layers=1).graph()
    local = local_graph(plan(graph, 2), 1)
    counts = local.counts()
    assert (counts["copy_to_ranks"], counts["sum_over_ranks"]) == (2, 2), "one of each for attention and feed-forward"
    (node,) = (n for n in local if n.op.name == "attention")
    assert [v.shape[2] for v in node.arguments[:3]] == [4, 2, 2]
    assert [str(v.type) for v in local.outputs.values()] == [str(v.type) for v in graph.outputs.values()]
    assert local.params["model.layers.0.self_attn.k_proj.bias"].shape == (8,)


def test_an_adapter_is_cut_with_its_layer() -> None:
    graph = small("llama", layers=1, kv_heads=8).graph()
    add_lora(graph, 4, 8.0, "all-linear")
    found = plan(graph, 2)
    kinds = {k.removeprefix("model.layers.0.self_attn."): s.kind for k, s in found.splits.items()}
    assert kinds["q_proj.lora_B.weight"] == "column"
    assert kinds["o_proj.lora_A.weight"] == "row"
    assert "q_proj.lora_A.weight" not in kinds
    assert "o_proj.lora_B.weight" not in kinds


def test_a_weight_read_inside_a_cut_layer_gets_all_gradients() -> None:
    graph = normed().graph()
    found = plan(graph, 2)
    assert "q_norm.weight" not in found.splits
    local = local_graph(found, 0)
    (reader,) = local.params["q_norm.weight"].users
    assert reader.op.name == "copy_to_ranks"
    weights, given = Weights.initialize(graph, 1), inputs(graph)
    expected = interpret(graph, given, lambda path: weights[path].numpy())
    for outputs in together(graph, 2, weights, given, False):
        np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=1e-6)


@pytest.mark.parametrize(
    ("family", "changes", "size", "message"),
    [
        ("llama", {"kv_heads": 2}, 4, "2 heads cannot be shared equally by 4 ranks"),
        ("llama", {"kv_heads": 1}, 2, "1 key/value heads for 8 query heads .* cannot be shared by 2 ranks"),
        ("llama", {"ffn": 49}, 2, "49 channels cannot be shared equally by 2 ranks"),
        ("gpt2", {}, 3, "32 channels cannot be shared equally by 3 ranks|4 heads cannot be shared equally by 3 ranks"),
    ],
)
def test_what_cannot_be_shared_equally(family: str, changes: dict[str, Any], size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(small(family, **changes).graph(), size)


def test_a_model_without_layers_to_share_names_what_stops_it() -> None:
    with pytest.raises(ConfigError, match=r"no layer of lstm_lm can be shared by 2 ranks\n.*lm_head.weight: "):
        plan(load_family("lstm_lm")(vocab=48, dim=16).graph(), 2)


def test_what_needs_all_channels_stays_whole() -> None:
    graph = small("llama", layers=1).graph()
    with building(graph):
        labels = graph.input("labels", TensorType(i64, graph.outputs["logits"].shape[:-1]))
        graph.output("loss", cross_entropy(graph.outputs.pop("logits"), labels))
    assert plan(graph, 2).left["lm_head.weight"].startswith("cross_entropy at ")


def test_one_share_alone_is_not_the_model() -> None:
    graph = small("llama", layers=1).graph()
    found, weights = plan(graph, 2), Weights.initialize(graph, 1)
    part = found.take(weights, 0)
    with pytest.raises(PassError, match="needs the other ranks"):
        interpret(local_graph(found, 0), inputs(graph), lambda path: part[path].numpy())
