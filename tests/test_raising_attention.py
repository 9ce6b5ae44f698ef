"""Attention in more than 200 spellings is raised to one op with the structure of its mask, and computes the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from monograph.ir import Graph, building, interpret, ops, tensor, verify
from monograph.ir.ops.attention import Attention
from monograph.ir.types import Dim, f32, i64
from monograph.passes.raising import raise_graph
from raising_spellings import CAUSAL, HEADS, PADDED, WIDTH, Spelling, build, expected, inputs_of, spellings

ALL = list(spellings())


def test_there_are_more_than_two_hundred() -> None:
    assert len(ALL) > 200


@pytest.mark.parametrize("spelling", ALL, ids=str)
def test_spelling(spelling: Spelling) -> None:
    graph = build(spelling)
    before = graph.copy()
    report = raise_graph(graph)
    verify(graph)
    found = [n for n in graph if isinstance(n.op, Attention)]
    assert len(found) == 1, f"{report}\n{graph}"
    assert not report.left and not report.undone
    _check_structure(spelling, found[0])
    sinks = np.linspace(-1, 1, 4, dtype=np.float32) if spelling.sinks else None
    params = {} if sinks is None else {"sinks": sinks}
    for seed, (batch, rows, kind) in enumerate([(1, 4, "ones"), (3, 5, "left"), (3, 5, "right"), (2, 6, "holed")]):
        given = inputs_of(before, spelling, batch, rows, rows + 2, seed, kind)
        wanted, counts = expected(spelling, given, sinks)
        for g in (before, graph):
            y = interpret(g, given, params)["y"]
            np.testing.assert_allclose(np.where(counts, y, 0), np.where(counts, wanted, 0), atol=2e-5, rtol=1e-4)


def _check_structure(spelling: Spelling, node: object) -> None:
    from monograph.ir.graph import Node

    assert isinstance(node, Node)
    at = node.attributes
    assert at["causal"] == (spelling.mask in CAUSAL)
    assert at["window"] == (3 if spelling.mask == "window" else None)
    assert (node["lengths"] is not None) == (spelling.mask == "lengths")
    assert (node["mask"] is not None) == (spelling.mask in PADDED | {"full", "full-added"})
    if spelling.mask in PADDED:
        assert node.value("mask").shape[1:3] == (1, 1), "the mask of keys has no axis of queries"
    assert (node["bias"] is not None) == (spelling.bias or spelling.mask == "biased")
    assert (node["sinks"] is not None) == spelling.sinks
    assert at["softcap"] == spelling.softcap or at["softcap"] == pytest.approx(spelling.softcap)
    assert at["scale"] == pytest.approx(1.0 if spelling.scale == "none" else 6**-0.5, rel=1e-6)
    heads = 2 if spelling.groups not in ("none", "tile") else 4
    assert node.value("k").shape[2] == heads and node.value("v").shape[2] == heads


@pytest.mark.parametrize("heads_lead", [False, True])
@pytest.mark.parametrize("order", list(itertools.permutations("bhsk")), ids="".join)
def test_axes_of_scores_in_any_order(order: tuple[str, ...], heads_lead: bool) -> None:
    """Softmax runs over the keys, whichever axis they are; what has no fixed size is no head."""
    b, s = Dim.symbol("B"), Dim.symbol("S")
    g = Graph("ordered")
    to = tuple("bhsk".index(a) for a in order)
    back = tuple(order.index(a) for a in "bhsk")
    with building(g):
        q, k, v = (g.input(n, tensor(f32, b, s, HEADS * WIDTH)).split_heads(HEADS) for n in "qkv")
        kept = ops.cast(g.input("attention_mask", tensor(i64, b, s)), dtype=f32).reshape(b, 1, 1, s)
        lead = (2, 0, 1, 3) if heads_lead else (0, 2, 1, 3)
        q, k, v = (x.transpose(*lead) for x in (q, k, v))
        scores = ops.matmul(q, k.transpose(0, 1, 3, 2)).transpose(*((1, 0, 2, 3) if heads_lead else (0, 1, 2, 3)))
        scores = scores.transpose(*to) * WIDTH**-0.5 + ((kept - 1.0) * 1e9).transpose(*to)
        weights = ops.softmax(scores, axis=order.index("k") - 4).transpose(*back)
        y = ops.matmul(weights.transpose(1, 0, 2, 3), v) if heads_lead else ops.matmul(weights, v)
        g.output("y", y.transpose(*((1, 2, 0, 3) if heads_lead else (0, 2, 1, 3))).merge_heads())
    report = raise_graph(g)
    verify(g)
    (found,) = [n for n in g if isinstance(n.op, Attention)]
    assert not report.left and found.value("q").shape == (b, s, HEADS, WIDTH)
    assert found["bias"] is None and found.value("mask").shape == (b, 1, 1, s)
    spelling = Spelling(scale="scores", mask="1e4")
    for seed, (batch, rows, kind) in enumerate([(1, 4, "ones"), (3, 5, "left"), (4, 4, "holed")]):
        given = inputs_of(g, spelling, batch, rows, rows, seed, kind)
        wanted, _ = expected(spelling, given, None)
        np.testing.assert_allclose(interpret(g, given, {})["y"], wanted, atol=2e-5, rtol=1e-4)
