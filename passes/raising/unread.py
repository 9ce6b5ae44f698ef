"""Erase at once what a replaced or refused value was made of, so that no part of it is found again."""

from __future__ import annotations

from ...ir.graph import Graph, Value


def erase_unread(graph: Graph, v: Value) -> None:
    """Erase the node of a value that nothing reads, and what only that node read."""
    waiting = [v]
    while waiting:
        node = waiting.pop().producer
        if node is None or node.order < 0 or any(x.uses or graph.is_output(x) for x in node.outputs):
            continue
        waiting += node.arguments
        graph.erase(node)
