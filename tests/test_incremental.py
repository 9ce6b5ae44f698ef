"""The cache on odd graphs: what it cannot make right is refused with the place, never served with other numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from monograph.ir import DType, Graph, Value, building, interpret, ops, tensor
from monograph.ir.errors import MonographError, PassError
from monograph.ir.op import OPS
from monograph.passes import pipelines
from monograph.passes.differential import CASES, difference


def causal(make: Callable[[Graph, Value, Value], Value]) -> Graph:
    """A language model without a mask of its own: `make` gives logits from (graph, ids, embedded ids)."""
    graph = Graph("odd")
    with building(graph):
        ids = graph.input("input_ids", tensor(DType.i64, "B", "S"))
        x = ops.embedding(ids, graph.param("table", tensor(DType.f32, 11, 16)))
        graph.output("logits", make(graph, ids, x))
    return graph


def attend(x: Value, **options: object) -> Value:
    heads = x.split_heads(2)
    return ops.attention(heads, heads, heads, causal=True, **options).merge_heads()  # type: ignore[arg-type]


def both_ways(graph: Graph, ids: Value, x: Value) -> Value:
    y = attend(x).split_heads(2)
    return ops.attention(y, y, y).merge_heads()


def counted_positions(graph: Graph, ids: Value, x: Value) -> Value:
    table = graph.param("positions", tensor(DType.f32, 64, 16))
    return attend(x + ops.embedding(ops.iota(start=0, length=ids.shape[1]), table))


def attention_by_hand(graph: Graph, ids: Value, x: Value) -> Value:
    return attend(x) + ops.relu(x @ x.transpose(0, 2, 1)) @ x


def mean_of_all(graph: Graph, ids: Value, x: Value) -> Value:
    return attend(x) + ops.mean(x, axis=1)


@pytest.mark.parametrize(
    ("make", "op"),
    [(both_ways, "attention"), (attention_by_hand, "matmul"), (mean_of_all, "mean")],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_node_that_needs_all_tokens_is_refused(make: Callable[..., Value], op: str) -> None:
    with pytest.raises(PassError, match=rf"test_incremental\.py:\d+: {op} reads all tokens"):
        pipelines.decode(causal(make))


def test_positions_that_a_model_counts_itself_go_on_behind_the_past() -> None:
    plain = causal(counted_positions)
    assert difference(plain, pipelines.decode(plain)) is None


def test_lengths_counted_from_a_mask_grow_with_it() -> None:
    def make(graph: Graph, ids: Value, x: Value) -> Value:
        mask = graph.input("attention_mask", tensor(DType.i64, "B", "S"))
        lengths = ops.sum(mask, axis=-1, keepdims=False).cast(DType.i32)
        return attend(x, lengths=lengths)

    plain = causal(make)
    cached = pipelines.decode(plain)
    assert str(cached.inputs["attention_mask"].type) == "i64[B,P+S]"
    # `lengths` means padding on the right and nothing else.
    right = tuple(c for c in CASES if c.mask in ("all-ones", "right-padded"))
    assert difference(plain, cached, cases=right) is None


def test_a_bias_over_key_positions_grows() -> None:
    def make(graph: Graph, ids: Value, x: Value) -> Value:
        slopes = graph.param("slopes", tensor(DType.f32, 2, 1, 1))
        keys = ops.iota(start=0, length=ids.shape[1]).cast(DType.f32)
        return attend(x, bias=slopes * keys)

    plain = causal(make)
    assert difference(plain, pipelines.decode(plain)) is None


def test_two_attentions_may_read_the_same_keys_and_values() -> None:
    def make(graph: Graph, ids: Value, x: Value) -> Value:
        keys = x.split_heads(2)
        again = ops.attention(attend(x).split_heads(2), keys, keys, causal=True)
        return again.merge_heads()

    plain = causal(make)
    assert difference(plain, pipelines.decode(plain)) is None


def test_an_output_that_nothing_computes_stays_with_the_encoder() -> None:
    def make(graph: Graph, ids: Value, x: Value) -> Value:
        target = graph.input("decoder_input_ids", tensor(DType.i64, "B", "U"))
        y = attend(ops.embedding(target, graph.params["table"]))
        return y + ops.mean(x, axis=1)

    graph = causal(make)
    graph.output("source", graph.inputs["input_ids"])
    encoder, decoder = pipelines.seq2seq(graph)
    assert list(encoder.outputs) == ["source", "encoder.0"]
    assert "logits" in decoder.outputs
    assert "source" not in decoder.outputs


@pytest.mark.parametrize(("rows", "keys"), [(0, 0), (0, 3), (2, 0)])
def test_attention_over_nothing_gives_zeros(rows: int, keys: int) -> None:
    graph = Graph("nothing")
    q = graph.input("q", tensor(DType.f32, "B", "S", 2, 8))
    k, v = (graph.input(name, tensor(DType.f32, "B", "T", 2, 8)) for name in "kv")
    graph.output("y", ops.attention(q, k, v, causal=True))
    shapes = {"q": (1, rows, 2, 8), "k": (1, keys, 2, 8), "v": (1, keys, 2, 8)}
    y = interpret(graph, {name: np.ones(shape, np.float32) for name, shape in shapes.items()})["y"]
    np.testing.assert_array_equal(y, np.zeros(shapes["q"], np.float32))


def test_operands_that_are_left_out_at_the_end_are_absent() -> None:
    def make(graph: Graph, ids: Value, x: Value) -> Value:
        weights = [graph.param(name, tensor(DType.f32, 16, 16)) for name in "qkv"]
        q, k, v = (graph.add(OPS["linear"], (x, w), {})[0].split_heads(2) for w in weights)
        return graph.add(OPS["attention"], (q, k, v), {"causal": True})[0].merge_heads()

    plain = causal(make)
    assert difference(plain, pipelines.decode(plain)) is None


def test_an_output_is_not_lost_to_another_of_its_name() -> None:
    graph = causal(lambda graph, ids, x: attend(x))
    with pytest.raises(MonographError, match="graph odd already has an output named logits"):
        graph.output("logits", graph.outputs["logits"])


def test_the_differential_check_misses_no_output() -> None:
    plain = causal(lambda graph, ids, x: attend(x))
    plain.output("hidden", next(n for n in plain if n.op.name == "attention").output)
    less = plain.copy()
    del less.outputs["hidden"]
    assert difference(plain, less) == f"case: {CASES[0]}\noutput hidden is gone"
