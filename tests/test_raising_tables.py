"""Rotary positions whose sines and cosines are looked up in stored tables are raised to the op."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from monograph.ir import Graph, Value, building, interpret, ops, tensor, verify
from monograph.ir.types import Dim, f32, i64
from monograph.passes.raising import raise_graph

B, S = Dim.symbol("B"), Dim.symbol("S")
R, HEADS, LONGEST = 8, 3, 64
RATES = (1.0 / 100.0 ** (np.arange(0, R, 2) / R)).astype(np.float32)
ANGLES = np.arange(LONGEST, dtype=np.float32)[:, None] * RATES


def looked_up(how: str) -> tuple[Graph, dict[str, Any]]:
    g = Graph("tables")
    with building(g):
        x = g.input("x", tensor(f32, B, S, HEADS * R)).split_heads(HEADS)
        places = g.input("position_ids", tensor(i64, B, S))
        if how == "joined":  # As GPT-J.
            rows = ops.gather(g.param("table", tensor(f32, LONGEST, R)), places, axis=0)
            s, c = (ops.slice_(rows, axis=-1, start=i * R // 2, length=R // 2) for i in (0, 1))
            s, c = (ops.concat(v, v, axis=-1) for v in (s, c))
        elif how == "by element":  # As GPT-J with positions of its own: torch.gather.
            wide = ops.expand(g.param("table", tensor(f32, LONGEST, R)).reshape(1, LONGEST, R), shape=(B, LONGEST, R))
            index = ops.where(ops.less(places, 0), places + LONGEST, places).reshape(B, S, 1)
            rows = ops.take_along_axis(wide, ops.expand(index, shape=(B, S, R)), axis=-2)
            s, c = (ops.slice_(rows, axis=-1, start=i * R // 2, length=R // 2) for i in (0, 1))
            s, c = (ops.concat(v, v, axis=-1) for v in (s, c))
        else:
            s, c = (ops.gather(g.param(n, tensor(f32, LONGEST, R)), places, axis=0) for n in ("sin", "cos"))
        g.output("y", turned(x, c, s).merge_heads())
    tables = {"table": np.concatenate([np.sin(ANGLES), np.cos(ANGLES)], axis=-1)} if how != "apart" else {
        "sin": np.tile(np.sin(ANGLES), (1, 2)), "cos": np.tile(np.cos(ANGLES), (1, 2)),
    }  # fmt: skip
    return g, tables


def turned(x: Value, c: Value, s: Value) -> Value:
    a, b = (ops.slice_(x, axis=-1, start=i * R // 2, length=R // 2) for i in (0, 1))
    c, s = (v.reshape(B, S, 1, R) for v in (c, s))
    return x * c + ops.concat(-b, a, axis=-1) * s


@pytest.mark.parametrize("how", ["joined", "apart", "by element"])
def test_tables_are_read(how: str) -> None:
    g, tables = looked_up(how)
    before = g.copy()
    report = raise_graph(g, lambda name: tables[name])
    verify(g)
    assert report.counts == {"rope": 1}, g
    rng = np.random.default_rng(0)
    given = {
        "x": rng.standard_normal((2, 5, HEADS * R)).astype(np.float32),
        "position_ids": rng.integers(0, LONGEST, (2, 5)),
    }
    y, expected = interpret(g, given)["y"], interpret(before, given, tables)["y"]
    np.testing.assert_allclose(y, expected, atol=5e-5)


def test_a_table_of_something_else_stays() -> None:
    g, tables = looked_up("apart")
    tables["sin"] = np.tile(np.sin(ANGLES**2), (1, 2))
    before = g.copy()
    assert not raise_graph(g, lambda name: tables[name]).counts.get("rope")
    assert g.params.keys() == before.params.keys()
