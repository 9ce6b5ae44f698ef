"""Graphs that look like attention or a norm and are not, in sizes where every axis could be every other one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from monograph.ir import DType, Graph, Value, building, interpret, ops, tensor
from monograph.passes import pipelines

N = 4
"""Batch, length, heads and width alike."""
LOWEST = DType.f32.lowest


def heads_first(x: Value) -> Value:
    return x.transpose(0, 2, 1, 3)


def scores(q: Value, k: Value) -> Value:
    return heads_first(q) @ k.transpose(0, 2, 3, 1) * 0.5


def masked(seen: Callable[[Value, Value], Value], fill: float = LOWEST) -> Callable[[Value, Value, Value], Value]:
    """Attention by hand under the mask `seen` (key, query)."""

    def attend(q: Value, k: Value, v: Value) -> Value:
        keep = seen(ops.iota(start=0, length=N), ops.iota(start=0, length=N).reshape(N, 1))
        weights = ops.softmax(ops.where(keep, scores(q, k), ops.constant(value=fill, dtype=DType.f32)))
        weights = ops.where(keep, weights, ops.constant(value=0.0, dtype=DType.f32))
        return heads_first(weights @ heads_first(v))

    return attend


NOT_ATTENTION: dict[str, Callable[[Value, Value, Value], Value]] = {
    "result not turned back": lambda q, k, v: ops.softmax(scores(q, k)) @ heads_first(v),
    "keys not transposed": lambda q, k, v: heads_first(ops.softmax(heads_first(q) @ heads_first(k)) @ heads_first(v)),
    "queries by length": lambda q, k, v: heads_first(ops.softmax(q @ k.transpose(0, 2, 3, 1)) @ heads_first(v)),
    "values by width": lambda q, k, v: heads_first(ops.softmax(scores(q, k)) @ v.transpose(0, 2, 3, 1)),
    "softmax over queries": lambda q, k, v: heads_first(ops.softmax(scores(q, k), axis=-2) @ heads_first(v)),
    "filled with -1": masked(ops.less_equal, fill=-1.0),
}
NOT_CAUSAL: dict[str, Callable[[Value, Value], Value]] = {
    "before only": ops.less,
    "after": lambda key, query: ops.less_equal(query, key),
    "one further": lambda key, query: ops.less_equal(key, query + 1),
}
NOT_A_WINDOW: dict[str, Callable[[Value, Value], Value]] = {
    "one wider": lambda key, query: ops.less_equal(key, query) & ops.less_equal(query, key + 2),
    "the old ones": lambda key, query: ops.less_equal(key, query) & ops.less(key + 2, query),
}


def raised(attend: Callable[[Value, Value, Value], Value]) -> Graph:
    """The graph after `encode`, which must compute what it did before."""
    graph = Graph("alike")
    with building(graph):
        graph.output("y", attend(*(graph.input(name, tensor(DType.f32, N, N, N, N)) for name in "qkv")))
    fused = pipelines.encode(graph)
    rng = np.random.default_rng(0)
    inputs = {name: rng.standard_normal((N, N, N, N), np.float32) for name in "qkv"}
    np.testing.assert_allclose(interpret(fused, inputs)["y"], interpret(graph, inputs)["y"], atol=1e-5)
    return fused


@pytest.mark.parametrize("name", NOT_ATTENTION)
def test_what_only_looks_like_attention_is_left_alone(name: str) -> None:
    assert "attention" not in raised(NOT_ATTENTION[name]).counts()


@pytest.mark.parametrize("name", [*NOT_CAUSAL, *NOT_A_WINDOW])
def test_a_mask_that_only_looks_causal_stays_a_mask(name: str) -> None:
    fused = raised(masked({**NOT_CAUSAL, **NOT_A_WINDOW}[name]))
    (node,) = [n for n in fused if n.op.name == "attention"]
    assert node.operands[4] is not None
    assert (node.attributes["causal"], node.attributes["window"]) == (name in NOT_A_WINDOW, None)


def test_the_real_ones_are_found() -> None:
    (causal,) = [n for n in raised(masked(ops.less_equal)) if n.op.name == "attention"]
    assert (causal.operands[4], causal.attributes["causal"]) == (None, True)
    near = masked(lambda key, query: ops.less_equal(key, query) & ops.less(query, key + 2))
    (windowed,) = [n for n in raised(near) if n.op.name == "attention"]
    assert (windowed.operands[4], windowed.attributes["causal"], windowed.attributes["window"]) == (None, True, 2)


NOT_RMS: dict[str, tuple[tuple[int, ...], Callable[[Value, Value], Value]]] = {
    "weight of rank 2": ((1, N), lambda x, w: x * ops.rsqrt(ops.mean(x * x) + 1e-6) * w),
    "one weight for all": ((1,), lambda x, w: x * ops.rsqrt(ops.mean(x * x) + 1e-6) * w),
    "over another axis": ((N,), lambda x, w: x * ops.rsqrt(ops.mean(x * x, axis=-2) + 1e-6) * w),
    "sum for mean": ((N,), lambda x, w: x * ops.rsqrt(ops.sum(x * x) + 1e-6) * w),
    "of another value": ((N,), lambda x, w: x * ops.rsqrt(ops.mean(x * (x * w)) + 1e-6) * w),
}


@pytest.mark.parametrize("name", NOT_RMS)
def test_what_only_looks_like_a_norm_is_left_alone(name: str) -> None:
    shape, write = NOT_RMS[name]
    graph = Graph("alike")
    with building(graph):
        x, w = graph.input("x", tensor(DType.f32, N, N, N)), graph.param("w", tensor(DType.f32, *shape))
        graph.output("y", write(x, w))
    fused = pipelines.encode(graph)
    assert "rms_norm" not in fused.counts()
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((N, N, N), np.float32), rng.standard_normal(shape, np.float32)
    found, expected = (interpret(g, {"x": x}, {"w": w})["y"] for g in (fused, graph))
    np.testing.assert_allclose(found, expected, atol=1e-5)
