"""Graphs: operands by name, and copies of nodes."""

from __future__ import annotations

import pytest
from monograph.ir import ops
from monograph.ir.clone import bring, clone
from monograph.ir.errors import MonographError
from monograph.ir.graph import Graph, Value
from monograph.ir.types import Dim, TensorType, f32
from monograph.ir.verify import verify

S = Dim.symbol("S")


def layer() -> tuple[Graph, Value]:
    graph = Graph("layer")
    x = graph.input("x", TensorType(f32, (S, 8)))
    w = graph.param("w.weight", TensorType(f32, (4, 8)))
    y = ops.linear(x, w)
    graph.output("y", y)
    return graph, y


def test_operands_are_read_by_name() -> None:
    graph, y = layer()
    node = y.producer
    assert node is not None
    assert (node["x"], node["w"], node["b"]) == (graph.inputs["x"], graph.params["w.weight"], None)
    assert node.value("x") is graph.inputs["x"]
    assert node.place_of("b") == 2
    with pytest.raises(MonographError, match="linear has no operand 'weights'"):
        node["weights"]
    with pytest.raises(MonographError, match="linear has no b here"):
        node.value("b")


def test_a_copy_brings_what_it_is_computed_from() -> None:
    graph, y = layer()
    z = ops.silu(y)
    assert z.producer is not None
    into = Graph("other")
    mapping = clone([z.producer], into, {})
    into.output("z", mapping[z])
    verify(into)
    assert list(into.inputs) == ["x"]
    assert list(into.params) == ["w.weight"]
    assert [n.op for n in into] == [n.op for n in graph]
    assert [n.location for n in into] == [n.location for n in graph]


def test_a_copy_on_other_types_is_inferred_again() -> None:
    _, y = layer()
    into = Graph("other")
    x = into.input("x", TensorType(f32, (2, 8)))
    assert y.producer is not None
    assert bring(y, into, {y.producer.value("x"): x}).shape == (2, 4)


def test_an_insertion_point_holds_inside_its_block_only() -> None:
    graph, y = layer()
    before = y.producer
    with graph.at(before):
        outer = ops.silu(graph.inputs["x"])
        with graph.at(None):
            last = ops.silu(y)
        inner = ops.silu(outer)
    assert [n.op.name for n in graph] == ["silu", "silu", "linear", "silu"]
    assert inner.producer is not None
    assert inner.producer.next is before
    assert last.producer is not None
    assert last.producer.next is None


def test_two_graphs_have_insertion_points_of_their_own() -> None:
    graph, y = layer()
    other, z = layer()
    with graph.at(y.producer), other.at(z.producer):
        ops.silu(graph.inputs["x"])
        ops.silu(other.inputs["x"])
    assert [n.op.name for n in graph] == [n.op.name for n in other] == ["silu", "linear"]
