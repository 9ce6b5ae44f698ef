"""Which inputs of a graph choose rows of a table, and how many rows that has."""

from __future__ import annotations

from .graph import Graph, Node, Value
from .ops.elementwise import Cast
from .ops.linear import Embedding
from .ops.shape import Expand, Gather, Reshape, Slice, TakeAlongAxis, Transpose

_MOVES = (Reshape, Transpose, Expand, Slice, TakeAlongAxis, Cast)
"""Ops that give elements of their first operand as they are."""


def bounds_of(*graphs: Graph) -> dict[str, int]:
    """For every integer input that chooses rows of a parameter, how many rows that has; the least of several."""
    found: dict[str, int] = {}
    for graph in graphs:
        for node in graph:
            rows, index = _table(node)
            source = None if index is None else _source(index)
            if source is not None and rows is not None and graph.inputs.get(source.name) is source:
                found[source.name] = min(rows, found.get(source.name, rows))
    return found


def _table(node: Node) -> tuple[int | None, Value | None]:
    """(rows, index) of a node that chooses rows of a parameter."""
    if isinstance(node.op, Embedding):
        index, table = node.arguments
        axis = 0
    elif isinstance(node.op, Gather):
        table, index = node.arguments
        axis = node.attributes["axis"]
    else:
        return None, None
    rows = table.shape[axis]
    return (rows, index) if table.is_param and isinstance(rows, int) else (None, None)


def _source(v: Value) -> Value:
    """Where the elements of a value come from, unchanged."""
    while v.producer is not None and isinstance(v.producer.op, _MOVES):
        v = v.producer.value("x")
    return v
