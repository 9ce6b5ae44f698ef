"""Random well-formed graphs, for property tests of text, passes and backends."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from monograph.ir import Graph, Value, building, ops, tensor
from monograph.ir.builder import enter_scope
from monograph.ir.types import DType, bool_, f32, i64

WIDTH, HEADS = 4, 2
SIZES = {"B": 2, "S": 3}

Array = np.ndarray[Any, Any]


@st.composite
def graphs(draw: st.DrawFn, dtype: DType = f32, size: int = 8) -> Graph:
    """A graph over x [B,S,4] (and a mask) of up to `size` steps, each taken from the ops a transformer is made of."""
    graph = Graph("random")
    with building(graph):
        x = graph.input("x", tensor(dtype, "B", "S", WIDTH))
        mask = graph.input("mask", tensor(bool_, "B", 1, 1, "S"))
        values = [x]
        for i in range(draw(st.integers(1, size))):
            enter_scope(graph, draw(st.sampled_from(["", "layers.0", "layers.1"])))
            step = draw(st.sampled_from(STEPS))
            operands = [values[draw(st.integers(0, len(values) - 1))] for _ in range(2)]
            values.append(step(graph, operands[0], operands[1], mask, i))
        for i in draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=2, unique=True)):
            graph.output(f"output.{i}", values[i])
        graph.output("last", values[-1])
    return graph


def inputs_for(graph: Graph, seed: int) -> dict[str, Array]:
    """Values for the inputs of a random graph; some rows of the mask are all false."""
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for name, v in graph.inputs.items():
        shape = tuple(SIZES[d.name] if not isinstance(d, int) else d for d in v.shape)
        found[name] = rng.random(shape) < 0.7 if v.dtype == bool_ else rng.normal(size=shape).astype(v.dtype.numpy)
    return found


def _weight(x: Value, *shape: int) -> Value:
    numbers = np.random.default_rng(len(shape) + shape[0]).normal(size=shape).round(2)
    return ops.constant(value=_tuples(numbers.tolist()), dtype=x.dtype)


def _tuples(x: Any) -> Any:
    return tuple(map(_tuples, x)) if isinstance(x, list) else x


def _attention(graph: Graph, x: Value, y: Value, mask: Value, i: int) -> Value:
    q, k = x.split_heads(HEADS), y.split_heads(HEADS)
    return ops.attention(q, k, k, mask=mask if i % 2 else None, causal=i % 3 == 0).merge_heads()


def _rope(graph: Graph, x: Value, y: Value, mask: Value, i: int) -> Value:
    positions = ops.expand(ops.iota(start=i, length=x.shape[1]), shape=x.shape[:2])
    return ops.rope(x.split_heads(HEADS), positions, ops.constant(value=(1.0,), dtype=x.dtype)).merge_heads()


def _last(graph: Graph, x: Value, y: Value, mask: Value, i: int) -> Value:
    last = ops.slice_(x, axis=1, start=x.shape[1] - 1, length=1)
    return ops.where(mask.reshape(mask.shape[0], mask.shape[3], 1), last, y)


STEPS = [
    lambda graph, x, y, mask, i: x + y,
    lambda graph, x, y, mask, i: x * y - 0.5,
    lambda graph, x, y, mask, i: ops.maximum(x, y),
    lambda graph, x, y, mask, i: ops.gelu(x, tanh=i % 2 == 0),
    lambda graph, x, y, mask, i: ops.softmax(x, axis=-1),
    lambda graph, x, y, mask, i: ops.rms_norm(x, _weight(x, WIDTH)),
    lambda graph, x, y, mask, i: ops.layer_norm(x, _weight(x, WIDTH), eps=0.1),
    lambda graph, x, y, mask, i: ops.add_rms_norm(x, y, _weight(x, WIDTH))[i % 2],
    lambda graph, x, y, mask, i: ops.linear(x, _weight(x, WIDTH, WIDTH), _weight(x, WIDTH) if i % 2 else None),
    lambda graph, x, y, mask, i: ops.feed_forward(x, _weight(x, 6, WIDTH), _weight(x, WIDTH, 6), activation="silu"),
    lambda graph, x, y, mask, i: ops.cast(ops.cast(ops.tanh(x), dtype=i64), dtype=x.dtype) + y,
    lambda graph, x, y, mask, i: ops.transpose(ops.transpose(x, permutation=(0, 2, 1)), permutation=(0, 2, 1)),
    _attention,
    _rope,
    _last,
]
