"""The verifier: invalid graphs and the message each must give, as plain files in golden/verify.

MONOGRAPH_UPDATE_GOLDEN=1 rewrites the messages; the part of a file above `---` is the graph and stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from monograph.ir import Graph, Value, ops, parse, tensor, verify
from monograph.ir.errors import MonographError, VerifyError
from monograph.ir.graph import Location
from monograph.ir.types import f32
from op_cases import CASES

GOLDEN = Path(__file__).parent / "golden" / "verify"
SEPARATOR = "---\n"


def message_of(graph: Graph) -> str:
    with pytest.raises(VerifyError) as caught:
        verify(graph)
    return str(caught.value).rstrip() + "\n"


def check(path: Path, head: str, message: str) -> None:
    """Compare with the file, or write it."""
    if os.environ.get("MONOGRAPH_UPDATE_GOLDEN"):
        path.write_text(f"{head}{SEPARATOR}{message}")
    assert path.read_text() == f"{head}{SEPARATOR}{message}"


WRITTEN = sorted(p for p in GOLDEN.glob("*.txt") if p.read_text().startswith("graph "))


def test_the_golden_files_are_found() -> None:
    assert len(WRITTEN) >= 6


@pytest.mark.parametrize("path", WRITTEN, ids=lambda p: p.stem)
def test_invalid_text(path: Path) -> None:
    head = path.read_text().partition(SEPARATOR)[0]
    check(path, head, message_of(parse(head)))


def chain() -> tuple[Graph, list[Value]]:
    """x -> exp -> tanh -> add(tanh, exp)."""
    graph = Graph("chain")
    with graph.at(None, Location("model.py", 7)):
        x = graph.input("x", tensor(f32, "B", 4))
        a = ops.exp(x)
        b = ops.tanh(a)
        c = b + a
        graph.output("y", c)
    return graph, [x, a, b, c]


def used_before_defined() -> Graph:
    graph, (_, a, b, _c) = chain()
    assert a.producer is not None
    graph.set_operand(a.producer, 0, b)
    return graph


def operand_of_another_graph() -> Graph:
    graph, (_, _a, b, _c) = chain()
    assert b.producer is not None
    graph.set_operand(b.producer, 0, chain()[1][1])
    return graph


def lost_use() -> Graph:
    graph, (_, a, b, _c) = chain()
    assert b.producer is not None
    del a.uses[b.producer, 0]
    return graph


def stale_use() -> Graph:
    graph, (x, _a, b, _c) = chain()
    assert b.producer is not None
    b.producer.operands[0] = x
    x.uses[b.producer, 0] = None
    return graph


def output_of_another_graph() -> Graph:
    graph, _ = chain()
    graph.outputs["z"] = chain()[1][3]
    return graph


def operand_that_was_erased() -> Graph:
    graph, (_, a, b, c) = chain()
    assert b.producer is not None and c.producer is not None
    graph.set_operand(c.producer, 0, a)
    graph.erase(b.producer)
    graph.set_operand(c.producer, 0, b)
    return graph


BROKEN = [
    used_before_defined,
    operand_of_another_graph,
    lost_use,
    stale_use,
    output_of_another_graph,
    operand_that_was_erased,
]


@pytest.mark.parametrize("broken", BROKEN, ids=lambda f: f.__name__)
def test_broken_structure(broken: Callable[[], Graph]) -> None:
    check(GOLDEN / f"{broken.__name__}.txt", f"# {broken.__name__} in test_verify.py\n", message_of(broken()))


def test_a_good_graph_is_given_back() -> None:
    graph, _ = chain()
    assert verify(graph) is graph


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_wrong_output_type_is_found(case: object) -> None:
    graph = case.graph()  # type: ignore[attr-defined]
    node = next(iter(graph))
    t = node.outputs[0].type
    node.outputs[0].type = type(t)(t.dtype, (*t.shape, 3))
    with pytest.raises(VerifyError, match="written type is"):
        verify(graph)


# -- the mutations keep what the verifier checks -----------------------------------------------------------------


def test_insert_keeps_the_order_at_the_head_and_between() -> None:
    graph, (x, a, _b, _c) = chain()
    for _ in range(60):  # Halving the gap between two nodes uses it up after 20 insertions.
        with graph.at(a.producer):
            graph.set_operand(a.producer, 0, ops.neg(a.producer.operands[0]))  # type: ignore[union-attr, arg-type]
        with graph.at(next(iter(graph))):
            ops.abs(x)
    orders = [n.order for n in graph]
    assert orders == sorted(set(orders))
    assert orders[0] > 0
    assert len(verify(graph)) == 123


def test_replace_moves_readers_and_outputs() -> None:
    graph, (x, a, _b, c) = chain()
    graph.replace(a, x)
    assert not a.uses
    graph.erase(a.producer)  # type: ignore[arg-type]
    graph.replace(c, x)
    assert graph.outputs["y"] is x
    assert len(verify(graph)) == 2


def test_erasing_what_is_used_is_refused() -> None:
    graph, (_, a, _b, c) = chain()
    for v in (a, c):
        with pytest.raises(MonographError, match="is still used and cannot be erased"):
            graph.erase(v.producer)  # type: ignore[arg-type]
    assert len(verify(graph)) == 3


def test_names_are_declared_once() -> None:
    graph, _ = chain()
    with pytest.raises(MonographError, match="graph chain already has an input named x"):
        graph.input("x", tensor(f32, 2))
    w = graph.param("w", tensor(f32, 2))
    assert graph.param("w", tensor(f32, 2)) is w
    with pytest.raises(MonographError, match=r"parameter w is used as f32\[2\] and as f32\[3\]"):
        graph.param("w", tensor(f32, 3))
    with pytest.raises(MonographError, match="output z belongs to graph chain, not to other"):
        Graph("other").output("z", w)
