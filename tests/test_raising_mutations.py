"""Seeded mistakes in spelled attention: what raising makes of a wrong graph computes what the graph computed."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from monograph.ir import Graph, Node, interpret, verify
from monograph.ir.errors import MonographError
from monograph.ir.ops import add, less, less_equal, softmax, sub
from monograph.ir.ops.elementwise import Add, Constant, Sub
from monograph.ir.ops.logic import Less, LessEqual
from monograph.ir.ops.reduce import Softmax
from monograph.ir.ops.shape import Iota, Transpose
from monograph.passes.raising import raise_graph
from raising_spellings import Spelling, build, inputs_of, spellings

BASES = [s for s in spellings() if s.mask in ("none", "where-inf", "full-added", "causal-added") and s.guard != "nan"]


def mutate(graph: Graph, rng: random.Random) -> str:
    """Change one node; gives what was done, or "" where the change would not type."""
    node = rng.choice(
        [n for n in graph if isinstance(n.op, (Transpose, Constant, Add, Sub, Less, LessEqual, Softmax, Iota))]
    )
    attributes: dict[str, Any] = dict(node.attributes)
    op, operands = node.op, list(node.operands)
    if isinstance(op, Transpose):
        order = list(attributes["permutation"])
        i, j = rng.sample(range(len(order)), 2)
        order[i], order[j] = order[j], order[i]
        attributes["permutation"] = tuple(order)
    elif isinstance(op, Constant):
        if isinstance(attributes["value"], tuple) or not node.output.dtype.is_float:
            return ""
        attributes["value"] = rng.choice([0.0, 1.0, -1.0, 3.0, attributes["value"] * 1.5])
    elif isinstance(op, Softmax):
        attributes["axis"] = rng.choice([-2, -3])
    elif isinstance(op, Iota):
        attributes["start"] = attributes["start"] + rng.choice([-1, 1])
    elif isinstance(op, (Less, LessEqual)):
        op = less.op if isinstance(op, LessEqual) else less_equal.op
        operands = operands[:: rng.choice([-1, 1])]
    else:
        op = sub.op if isinstance(op, Add) else add.op
    return _replaced(graph, node, op, operands, attributes)


def _replaced(graph: Graph, node: Node, op: Any, operands: list[Any], attributes: dict[str, Any]) -> str:
    try:
        with graph.at(node):
            (new,) = graph.add(op, operands, attributes)
    except MonographError:
        return ""
    if new.type != node.output.type:
        return ""
    graph.replace(node.output, new)
    graph.erase(node)
    return f"{op.name} {attributes}"


@pytest.mark.parametrize("seed", range(120))
def test_mistake(seed: int) -> None:
    rng = random.Random(seed)
    spelling: Spelling = rng.choice(BASES)
    graph = build(spelling)
    done = next((what for _ in range(50) if (what := mutate(graph, rng))), "")
    if not done:
        graph = build(spelling)
    before = graph.copy()
    report = raise_graph(graph)
    verify(graph)
    sinks = {"sinks": np.linspace(-1, 1, 4, dtype=np.float32)}
    for batch, rows, kind in ((1, 4, "ones"), (3, 5, "left"), (2, 6, "holed")):
        given = inputs_of(before, spelling, batch, rows, rows + 2, seed, kind)
        old, new = (interpret(g, given, sinks)["y"] for g in (before, graph))
        counts = np.isfinite(old)
        message = f"{spelling}: {done}\n{report}"
        np.testing.assert_allclose(np.where(counts, new, 0), np.where(counts, old, 0), atol=1e-4, err_msg=message)


def test_softmax_is_what_is_counted() -> None:
    graph = build(Spelling())
    assert sum(n.op is softmax.op for n in graph) == 1
