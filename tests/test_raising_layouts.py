"""Rearrangements in few nodes, guards of rows without a key, masks read by row and token: what goes, what may not."""

from __future__ import annotations

import numpy as np
import pytest
from monograph.ir import Graph, interpret, ops
from monograph.ir.graph import Value, building
from monograph.ir.types import Dim, TensorType, bool_, f32, i64
from monograph.passes.imported.whole_reads import drop_whole_reads
from monograph.passes.raising.layouts import shorten_layouts

B, S = Dim.symbol("B"), Dim.symbol("S")


def names(graph: Graph) -> list[str]:
    return [n.op.name for n in graph]


def same(before: Graph, after: Graph, **inputs: np.ndarray) -> None:
    for a, b in zip(interpret(before, inputs, {}).values(), interpret(after, inputs, {}).values(), strict=True):
        np.testing.assert_array_equal(a, b)


def heads(x: Value, tokens: object) -> Value:
    """[B,S,12] to heads, to groups of them, and back."""
    y = ops.transpose(ops.reshape(x, shape=(B, tokens, 2, 2, 3)), permutation=(0, 2, 3, 1, 4))
    y = ops.transpose(ops.reshape(y, shape=(B, 4, tokens, 3)), permutation=(0, 2, 1, 3))
    return ops.reshape(y, shape=(B, tokens, 12))


def test_a_way_there_and_back_is_no_way() -> None:
    graph = Graph("g")
    x = graph.input("x", TensorType(f32, (B, S, 12)))
    with building(graph):
        graph.output("y", ops.exp(heads(x, S)))
    before = graph.copy()
    assert shorten_layouts(graph) == 1
    assert names(graph) == ["exp"]
    same(before, graph, x=np.random.default_rng(0).standard_normal((2, 5, 12)).astype(np.float32))


def test_transposes_along_one_token_are_reshapes_and_others_stay() -> None:
    found: dict[object, list[str]] = {}
    for tokens in (1, S):
        graph = Graph("g")
        x = graph.input("x", TensorType(f32, (B, tokens, 4, 3)))
        with building(graph):
            graph.output("y", ops.exp(ops.transpose(x, permutation=(0, 2, 1, 3))))
        before = graph.copy()
        shorten_layouts(graph)
        found[tokens] = names(graph)
        count = tokens if isinstance(tokens, int) else 5
        same(before, graph, x=np.random.default_rng(0).standard_normal((2, count, 4, 3)).astype(np.float32))
    assert found == {1: ["reshape", "exp"], S: ["transpose", "exp"]}


@pytest.mark.parametrize("whole", [True, False])
def test_a_mask_read_by_row_and_token_is_the_mask(whole: bool) -> None:
    graph = Graph("g")
    mask = graph.input("attention_mask", TensorType(bool_, (B, S)))
    with building(graph):
        row = ops.reshape(ops.iota(start=0, length=B), shape=(B, 1, 1, 1))
        column = ops.reshape(ops.iota(start=0, length=S), shape=(1, 1, S, 1))
        column = column if whole else ops.minimum(column, ops.constant(value=2, dtype=i64))
        parts = [ops.expand(x, shape=(B, 1, S, 1)) for x in (row, column)]
        graph.output("y", ops.logical_not(ops.gather_nd(mask, ops.concat(*parts, axis=-1))))
    before = graph.copy()
    assert drop_whole_reads(graph) == int(whole)
    assert ("gather_nd" in names(graph)) is not whole
    same(before, graph, attention_mask=np.random.default_rng(0).random((3, 5)) < 0.5)
