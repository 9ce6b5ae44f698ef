"""Elements taken along the rows of a table, and written to all places, are read as what they are; others stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from monograph.ir import Graph, Value, building, interpret, ops, tensor
from monograph.ir.types import Dim, f32, i64
from monograph.passes.raising import raise_graph

B, S = Dim.symbol("B"), Dim.symbol("S")
R = 8


@pytest.mark.parametrize("what", ["a table for each row", "an index for each channel"])
def test_elements_that_are_no_rows_of_one_table_stay(what: str) -> None:
    """Nine rows of a batch are as many as the table has, so that only axes tell them apart."""
    g, n = Graph("taken"), 9
    own = what.startswith("a table")
    with building(g):
        x = g.input("x", tensor(f32, n, n, R) if own else tensor(f32, n, R))
        places = g.input("places", tensor(i64, n, S) if own else tensor(i64, n, S, R))
        wide = x if own else ops.expand(x.reshape(1, n, R), shape=(n, n, R))
        index = ops.expand(places.reshape(n, S, 1), shape=(n, S, R)) if own else places
        g.output("y", ops.take_along_axis(wide, index, axis=-2))
    rng = np.random.default_rng(0)
    given = {
        "x": rng.random(g.inputs["x"].shape, np.float32),
        "places": rng.integers(0, n, (n, 4) if own else (n, 4, R)),
    }
    expected = interpret(g, given)["y"]
    raise_graph(g)
    assert g.counts()["take_along_axis"] == 1
    np.testing.assert_array_equal(interpret(g, given)["y"], expected)


def places(*parts: Value, shape: tuple[Any, ...]) -> Value:
    """Indices [*shape, n] of which each part gives one."""
    return ops.concat(*(ops.expand(p, shape=shape).reshape(*shape, 1) for p in parts), axis=-1)


def written(kind: str) -> Graph:
    """A square of numbers of which places are written; S is 4 in the run, as both sides of the square are."""
    g = Graph("written")
    with building(g):
        x, y = (g.input(n, tensor(f32, B, 1, S, S)) for n in "xy")
        rows, first = ops.iota(start=0, length=S), ops.iota(start=0, length=B).reshape(B, 1, 1, 1)
        down, across = rows.reshape(S, 1), rows
        if kind == "turned":
            down, across = across, down
        elif kind == "one row":
            down = down * 0
        elif kind == "other batch":
            first = first * -1
        whole = places(first, ops.constant(value=0, dtype=i64), down, across, shape=(B, 1, S, S))
        g.output("z", ops.scatter_nd(x, whole, y, reduction="add" if kind == "added" else "none"))
    return g


@pytest.mark.parametrize("kind", ["own", "turned", "one row", "other batch", "added"])
def test_what_is_written_to_every_place_is_what_is_written(kind: str) -> None:
    g, rng = written(kind), np.random.default_rng(0)
    given = {n: rng.random((3, 1, 4, 4), np.float32) for n in "xy"}
    expected = interpret(g, given)["z"]
    raise_graph(g)
    assert ("scatter_nd" in g.counts()) == (kind != "own")
    np.testing.assert_array_equal(interpret(g, given)["z"], expected)
    if kind == "own":
        np.testing.assert_array_equal(expected, given["y"])
