"""What looks like attention, or like a mask of a kind, and is not: it stays with its obstacle, or keeps its mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from monograph.ir import Graph, Node, Value, building, interpret, ops, tensor, verify
from monograph.ir.ops.attention import Attention
from monograph.ir.types import Dim, bool_, f32, i64
from monograph.passes.raising import raise_graph

B, S, T = Dim.symbol("B"), Dim.symbol("S"), Dim.symbol("T")
SIZES = {"B": 2, "S": 4, "T": 6}
H, D = 2, 4
LOWEST = float(np.finfo(np.float32).min)


def graph_of(write: Callable[[Graph, Value, Value, Value], Value], keys: Dim = S) -> Graph:
    g = Graph("near")
    with building(g):
        q = g.input("q", tensor(f32, B, H, S, D))
        k, v = (g.input(n, tensor(f32, B, H, keys, D)) for n in "kv")
        g.output("y", write(g, q, k, v))
    return g


def numbers(g: Graph, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for name, v in g.inputs.items():
        shape = tuple(d if isinstance(d, int) else SIZES[str(d)] for d in v.shape)
        if v.dtype.is_float:
            found[name] = rng.standard_normal(shape).astype(np.float32)
        else:
            found[name] = rng.integers(0, 2 if v.dtype is bool_ else 4, shape).astype(v.dtype.numpy)
    return found


def params(g: Graph) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    return {n: rng.standard_normal([int(d) for d in v.shape]).astype(np.float32) for n, v in g.params.items()}  # type: ignore[arg-type]


def scores(q: Value, k: Value) -> Value:
    return ops.matmul(q * 0.5, k.transpose(0, 1, 3, 2))


def wrong_axis(g: Graph, q: Value, k: Value, v: Value) -> Value:
    return ops.matmul(ops.softmax(scores(q, k), axis=-2), v)


def scaled_twice_over(g: Graph, q: Value, k: Value, v: Value) -> Value:
    return ops.matmul(ops.softmax(scores(q, k) * g.input("by", tensor(f32, B, 1, S, S))), v)


def scaled_after_mask(g: Graph, q: Value, k: Value, v: Value) -> Value:
    added = scores(q, k) + (ops.cast(g.input("mask", tensor(i64, B, 1, 1, S)), dtype=f32) - 1.0) * 1e9
    return ops.matmul(ops.softmax(added * g.param("temperature", tensor(f32, 1))), v)


def multiplied_by_indicator(g: Graph, q: Value, k: Value, v: Value) -> Value:
    return ops.matmul(ops.softmax(scores(q, k) * ops.cast(g.input("mask", tensor(i64, B, 1, 1, S)), dtype=f32)), v)


def masked_after(g: Graph, q: Value, k: Value, v: Value) -> Value:
    keep = g.input("mask", tensor(bool_, B, 1, S, S))
    return ops.matmul(ops.where(keep, ops.softmax(scores(q, k)), 0.0), v)


def added_after(g: Graph, q: Value, k: Value, v: Value) -> Value:
    return ops.matmul(ops.softmax(scores(q, k)) + g.input("bias", tensor(f32, B, 1, S, S)), v)


def multiplied_after(g: Graph, q: Value, k: Value, v: Value) -> Value:
    return ops.matmul(ops.softmax(scores(q, k)) * 2.0, v)


def capped_after_mask(g: Graph, q: Value, k: Value, v: Value) -> Value:
    keep = g.input("mask", tensor(bool_, B, 1, S, S))
    masked = ops.where(keep, scores(q, k), ops.constant(value=LOWEST, dtype=f32))
    return ops.matmul(ops.softmax(ops.tanh(masked * 0.2) * 5.0), v)


def capped_after_bias(g: Graph, q: Value, k: Value, v: Value) -> Value:
    biased = scores(q, k) + g.input("bias", tensor(f32, B, 1, S, S))
    return ops.matmul(ops.softmax(ops.tanh(biased * 0.2) * 5.0), v)


def weak_fill(g: Graph, q: Value, k: Value, v: Value) -> Value:
    keep = g.input("mask", tensor(bool_, B, 1, S, S))
    return ops.matmul(ops.softmax(ops.where(keep, scores(q, k), ops.constant(value=-5.0, dtype=f32))), v)


def weights_read(g: Graph, q: Value, k: Value, v: Value) -> Value:
    weights = ops.softmax(scores(q, k))
    g.output("weights", weights)
    return ops.matmul(weights, v)


def weights_read_inside(g: Graph, q: Value, k: Value, v: Value) -> Value:
    weights = ops.softmax(scores(q, k))
    return ops.matmul(weights, v) + ops.sum(weights)


def no_product(g: Graph, q: Value, k: Value, v: Value) -> Value:
    return ops.softmax(scores(q, k))


def elementwise_values(g: Graph, q: Value, k: Value, v: Value) -> Value:
    return ops.matmul(ops.exp(ops.softmax(scores(q, k))), v)


def router(g: Graph, q: Value, k: Value, v: Value) -> Value:
    gate = ops.softmax(ops.matmul(q, g.param("w", tensor(f32, D, 3))))
    return ops.matmul(gate, g.param("experts", tensor(f32, 3, D)))


def along_queries(g: Graph, q: Value, k: Value, v: Value) -> Value:
    weights = ops.softmax(scores(q, k)).transpose(0, 1, 3, 2)
    return ops.matmul(weights, v)


def mixed_heads(g: Graph, q: Value, k: Value, v: Value) -> Value:
    mixed = ops.matmul(g.param("mix", tensor(f32, H, H)), scores(q, k).reshape(B, H, S * S))
    return ops.matmul(ops.softmax(mixed.reshape(B, H, S, S)), v)


STAY: list[tuple[Callable[..., Value], str]] = [
    (wrong_axis, "axis -2"),
    (scaled_twice_over, "over queries and keys"),
    (scaled_after_mask, "multiplied by a tensor after"),
    (multiplied_by_indicator, "change a number"),
    (masked_after, "change a number"),
    (added_after, "weights go to add"),
    (multiplied_after, "change a number"),
    (capped_after_mask, "capped after"),
    (capped_after_bias, "capped after"),
    (weak_fill, "still counts"),
    (weights_read, "output of the graph"),
    (weights_read_inside, "read by 2 nodes"),
    (no_product, "output of the graph"),
    (elementwise_values, "weights go to exp"),
    (router, "with a weight"),
    (along_queries, "not the keys"),
    (mixed_heads, "with a weight|factor"),
]


@pytest.mark.parametrize(("write", "reason"), STAY, ids=lambda x: getattr(x, "__name__", ""))
def test_it_stays_with_its_obstacle(write: Callable[..., Value], reason: str) -> None:
    g = graph_of(write)
    before = g.copy()
    report = raise_graph(g)
    verify(g)
    assert not [n for n in g if isinstance(n.op, Attention)]
    assert len(report.left) == 1
    assert any(part in str(report.left[0]) for part in reason.split("|")), report
    assert report.as_json()["left"][0]["reason"]
    same(before, g)


def same(before: Graph, after: Graph) -> None:
    for seed in range(3):
        given = numbers(before, seed)
        for name, x in interpret(before, given, params(before)).items():
            np.testing.assert_allclose(interpret(after, given, params(before))[name], x, atol=3e-5)


def masked(keep: Callable[[Graph], Value]) -> Callable[[Graph, Value, Value, Value], Value]:
    def write(g: Graph, q: Value, k: Value, v: Value) -> Value:
        fill = ops.constant(value=LOWEST, dtype=f32)
        return ops.matmul(ops.softmax(ops.where(keep(g), scores(q, k), fill)), v)

    return write


def rows(start: Any = 0, length: Dim = S) -> Value:
    return ops.iota(start=start, length=length).reshape(length, 1)


def columns(length: Dim = T) -> Value:
    return ops.iota(start=0, length=length).reshape(1, length)


KEPT: dict[str, tuple[Callable[[Graph], Value], Dim]] = {
    "top-left": (lambda g: columns() <= rows(), T),
    "shifted": (lambda g: columns(S) <= rows(1), S),
    "reversed": (lambda g: columns(S) >= rows(), S),
    "strided": (lambda g: columns(S) <= rows() * 2, S),
    "two-sided": (lambda g: (columns(S) - rows() < 2) & (rows() - columns(S) < 2), S),
    "window-alone": (lambda g: rows() - columns(S) < 3, S),
    "either": (lambda g: (columns(S) <= rows()) | (columns(S) < 2), S),
    "ids": (lambda g: g.input("ids", tensor(i64, B, S)).eq(1).reshape(B, 1, 1, S) | columns(S).eq(0), S),
    "not-zero": (lambda g: g.input("ids", tensor(i64, B, S)).ne(2).reshape(B, 1, 1, S) | columns(S).eq(0), S),
    "threshold": (lambda g: (g.input("ids", tensor(i64, B, S)) <= 1).reshape(B, 1, 1, S) | columns(S).eq(0), S),
    "segments": (lambda g: _same_segment(g.input("ids", tensor(i64, B, S))), S),
    "by-position": (lambda g: _by_position(g.input("positions", tensor(i64, B, S))), S),
    "distant-window": (lambda g: rows() - columns(S) < 4096, S),
}


def _same_segment(ids: Value) -> Value:
    return ids.reshape(B, 1, S, 1).eq(ids.reshape(B, 1, 1, S))


def _by_position(places: Value) -> Value:
    return (places.reshape(B, 1, 1, S) <= places.reshape(B, 1, S, 1)) | columns(S).eq(rows())


@pytest.mark.parametrize("name", KEPT)
def test_a_mask_that_is_no_structure_stays_a_mask(name: str) -> None:
    keep, keys = KEPT[name]
    g = graph_of(masked(keep), keys)
    before = g.copy()
    report = raise_graph(g)
    (node,) = [n for n in g if isinstance(n.op, Attention)]
    assert not report.left
    assert not node.attributes["causal"] and node.attributes["window"] is None and node["lengths"] is None
    assert node["mask"] is not None
    same(before, g)


def test_integers_that_are_no_mask_are_a_bias() -> None:
    """(1 - n) * -1e5 hides keys where n is 0, and prefers them where it is 2: nothing says that n is 0 or 1."""

    def write(g: Graph, q: Value, k: Value, v: Value) -> Value:
        count = ops.cast(g.input("count", tensor(i64, B, 1, 1, S)), dtype=f32)
        one, much = (ops.constant(value=x, dtype=f32) for x in (1.0, -1e5))
        return ops.matmul(ops.softmax(scores(q, k) + (one - count) * much), v)

    g = graph_of(write)
    before = g.copy()
    assert not raise_graph(g).left
    (node,) = [n for n in g if isinstance(n.op, Attention)]
    assert node["mask"] is None and node["bias"] is not None
    same(before, g)


def test_a_wide_window_is_not_lost_on_short_inputs() -> None:
    keep: Callable[[Graph], Value] = lambda g: (columns(S) <= rows()) & (rows() - columns(S) < 4096)  # noqa: E731
    g = graph_of(masked(keep))
    raise_graph(g)
    (node,) = [n for n in g if isinstance(n.op, Attention)]
    assert node.attributes["causal"] and node.attributes["window"] == 4096 and node["mask"] is None


def test_a_mask_that_is_always_true_goes() -> None:
    g = graph_of(masked(lambda g: columns(S) < rows(S)))
    raise_graph(g)
    (node,) = [n for n in g if isinstance(n.op, Attention)]
    assert node["mask"] is None and not node.attributes["causal"]


def test_keys_that_are_not_transposed_are_other_keys() -> None:
    """q @ k with as many tokens as channels is a product with the columns of k; it is raised as that, or stays."""
    g = Graph("square")
    with building(g):
        q, k, v = (g.input(n, tensor(f32, B, H, D, D)) for n in "qkv")
        g.output("y", ops.matmul(ops.softmax(ops.matmul(q, k) * 0.5), v))
    before = g.copy()
    raise_graph(g)
    same(before, g)


def test_every_softmax_is_accounted_for() -> None:
    g = Graph("two")
    with building(g):
        q, k, v = (g.input(n, tensor(f32, B, H, S, D)) for n in "qkv")
        g.output("a", ops.matmul(ops.softmax(scores(q, k)), v))
        g.output("b", wrong_axis(g, q, k, v))
        g.output("c", ops.softmax(q))
    report = raise_graph(g)
    left: list[Node] = [n for n in g if n.op.name == "softmax"]
    assert report.counts["attention"] == 1 and len(report.left) == len(left) == 2
    assert "attention" in str(report) and "axis -2" in str(report)
