"""Chains of reshapes and transposes that fewer of them say, or none."""

from __future__ import annotations

from ...ir.errors import MonographError
from ...ir.graph import Graph, Node, Value
from ...ir.ops.shape import Reshape, Transpose
from .check import Check
from .unread import erase_unread
from .views import Group, Unaligned, View, built, rearranged

_MOVES = (Reshape, Transpose)


def shorten_moves(graph: Graph, check: Check) -> int:
    """Write every chain of reshapes and transposes with fewer of them, where that is possible. Gives how many."""
    ends = [n for n in graph if isinstance(n.op, _MOVES) and _is_read_otherwise(graph, n)]
    return sum(_shortened(graph, node, check) for node in reversed(ends) if node.order >= 0)


def _is_read_otherwise(graph: Graph, node: Node) -> bool:
    v = node.output
    return graph.is_output(v) or any(not isinstance(n.op, _MOVES) for n in v.users)


def _shortened(graph: Graph, end: Node, check: Check) -> bool:
    """From the whole chain above a node, or from the longest end of it whose axes factor."""
    chain = [end]
    while (above := chain[-1].value("x").producer) is not None and isinstance(above.op, _MOVES):
        chain.append(above)
    old = end.output
    while len(chain) > 1:
        source = chain[-1].value("x")
        try:
            groups = View.of(source).groups
            order = [a for g in groups for a in g]
            for node in reversed(chain):
                groups = rearranged(node, groups)
            return _replaced(graph, old, View(source, order, groups), groups, chain, check)
        except (Unaligned, MonographError):
            chain.pop()
    return False


def _replaced(graph: Graph, old: Value, view: View, groups: list[Group], chain: list[Node], check: Check) -> bool:
    gone = 1
    while gone < len(chain) and chain[gone].output.users == [chain[gone - 1]]:
        gone += 1
    with graph.at(chain[0]):
        new = built(view, groups, expanded=True)
    made, above = 0, new
    while above is not view.source and above.producer is not None:
        made, above = made + 1, above.producer.arguments[0]
    if made >= gone or check.difference(old, new, {view.source}, ()) is not None:
        if new is not view.source:
            erase_unread(graph, new)
        return False
    graph.replace(old, new)
    erase_unread(graph, old)
    return True
