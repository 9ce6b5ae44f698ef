"""Bounds of values: sound on every family and on random inputs, and as close as the facts of the ops allow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from monograph.ir import Graph, ops
from monograph.ir.builder import building
from monograph.ir.interpret import Array, interpret
from monograph.ir.ops.quant import Dequantize
from monograph.ir.ranges import Range, length_of, of_array, ranges_of
from monograph.ir.types import f32, tensor
from monograph.ir.value import Node, Value
from monograph.passes.differential import CASES, random_params, sample_inputs
from monograph.passes.pipelines import optimize
from small_models import FAMILIES, small

KNOWN = {"position_ids": Range(0, 64), "attention_mask": Range(0, 1), "decoder_position_ids": Range(0, 64)}


def bounded(graph: Graph, params: dict[str, Array], seed: int) -> list[str]:
    """Values of one run that leave their bounds."""
    bounds = ranges_of(graph, KNOWN, {k: of_array(v) for k, v in params.items()})
    found: list[str] = []

    def look(node: Node, results: tuple[Array, ...]) -> None:
        for v, x in zip(node.outputs, results, strict=True):
            if not v.dtype.is_float or not x.size:
                continue
            r, wide = bounds[v], x.astype(np.float64)
            slack = 1e-4 * max(1.0, r.most if math.isfinite(r.most) else 1.0)
            rows = float(np.sqrt(np.square(wide).sum(-1).max())) if x.ndim else abs(float(wide))
            if wide.min() < r.low - slack or wide.max() > r.high + slack or rows > r.rows + slack:
                found.append(f"{node}: [{wide.min()}, {wide.max()}] rows {rows} outside {r}")

    for case in CASES[:5]:
        interpret(graph, sample_inputs(graph, case, seed), params, look)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_value_of_every_family_keeps_to_its_bounds(family: str) -> None:
    for pipeline in ("clean", "encode"):
        graph, _ = optimize(small(family).graph(), pipeline)
        assert bounded(graph, random_params(graph), 1) == []


@pytest.mark.parametrize("seed", range(4))
def test_large_weights_too(seed: int) -> None:
    graph, _ = optimize(small("llama").graph(), "encode")
    params = {k: v * np.float32(10.0**seed) for k, v in random_params(graph, seed).items()}
    assert bounded(graph, params, seed) == []


def one(make: object, *shape: int | str) -> Range:
    """Bounds of a function of a value between -2 and 3."""
    graph = Graph("g")
    x = graph.input("x", tensor(f32, *(shape or ("B", 4))))
    with building(graph):
        y: Value = make(x)  # type: ignore[operator]
    graph.output("y", y)
    return ranges_of(graph, {"x": Range.of(-2.0, 3.0, x.shape)}, {})[y]


def test_bounds_of_single_ops() -> None:
    assert one(lambda x: x * 2.0 + 1.0).low == -3 and one(lambda x: x * 2.0 + 1.0).high == 7
    assert (one(lambda x: x * x).low, one(lambda x: x * x).high) == (0, 9)
    assert one(ops.exp).high == pytest.approx(math.exp(3))
    assert one(ops.tanh).most == 1 and one(ops.sigmoid).low == 0
    assert one(ops.softmax).rows == 1 and one(ops.softmax).high == 1
    assert one(ops.gelu).low == -1 and one(ops.silu).high == 3 and one(ops.relu).low == 0
    assert one(lambda x: x / 4.0).high == 0.75 and math.isinf(one(lambda x: 1.0 / x).most)
    assert one(lambda x: ops.sum(x)).high == 12 and one(lambda x: ops.mean(x)).low == -2
    assert one(lambda x: ops.transpose(x, permutation=(1, 0))).columns == pytest.approx(6)


def test_norms_and_products_are_bounded_whatever_goes_in() -> None:
    graph = Graph("g")
    x = graph.input("x", tensor(f32, "B", "S", 16))
    w, m = graph.param("w", tensor(f32, 16)), graph.param("m", tensor(f32, 8, 16))
    with building(graph):
        y = ops.linear(ops.rms_norm(x, w), m)
    graph.output("y", y)
    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal(16).astype(np.float32), "m": rng.standard_normal((8, 16)).astype(np.float32)}
    found = ranges_of(graph, {}, {k: of_array(v) for k, v in params.items()})[y]
    largest = max(
        float(np.abs(interpret(graph, {"x": x}, params)["y"]).max())
        for x in (rng.standard_normal((4, 5, 16)).astype(np.float32) * 10.0**e for e in range(-3, 8))
    )
    assert largest <= found.most <= 4 * np.linalg.norm(params["m"], axis=1).max() * np.abs(params["w"]).max() + 1e-3


def test_shares_of_a_sum_are_shares() -> None:
    graph = Graph("g")
    x = graph.input("x", tensor(f32, "B", 4))
    with building(graph):
        p = ops.softmax(x)
        y = p / ops.sum(p)
    graph.output("y", y)
    assert ranges_of(graph, {}, {})[y] == Range.of(0, 1, y.shape)


def test_lengths_of_arrays() -> None:
    x = np.array([[3.0, 4.0], [0.0, -12.0]], np.float32)
    assert of_array(x) == Range(-12.0, 4.0, 12.0, pytest.approx(math.sqrt(160)))
    assert of_array(np.zeros((0, 3), np.float32)).most == 0
    assert length_of((2, 9), -1, 2.0) == 6 and math.isinf(length_of((), -1, math.inf))
    assert Dequantize.ranges is not None
