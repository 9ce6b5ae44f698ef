"""Which inputs of a graph choose rows of a table, and how many rows that has."""

from __future__ import annotations

from .graph import Graph, Node, Value
from .ops.elementwise import Add, Cast, Mul, Sub
from .ops.linear import Embedding
from .ops.reduce import Cumsum
from .ops.shape import Expand, Gather, Reshape, Slice, TakeAlongAxis, Transpose

_MOVES = (Reshape, Transpose, Expand, Slice, TakeAlongAxis, Cast)
"""Ops that give elements of their first operand as they are."""


def bounds_of(*graphs: Graph) -> dict[str, int]:
    """For every integer input that chooses rows of a parameter, below what it must be; the least of several.

    That is how many rows the parameter has, less what is added before they are chosen.
    """
    found: dict[str, int] = {}
    for graph in graphs:
        for node in graph:
            rows, index = _table(node)
            if rows is None or index is None:
                continue
            source, more = _source(index)
            if graph.inputs.get(source.name) is source:
                found[source.name] = min(rows - more, found.get(source.name, rows - more))
    return found


def most_counted(mask: str, *graphs: Graph) -> int | None:
    """Most tokens of a row where a count of those that a mask keeps chooses rows of a parameter; None: none does."""
    found: list[int] = []
    for graph in graphs:
        for node in graph:
            rows, index = _table(node)
            more = None if index is None else _beyond_count(index, graph.inputs.get(mask))
            if rows is not None and more is not None:
                found.append(rows - 1 - more)
    return min(found, default=None)


def _beyond_count(v: Value, mask: Value | None) -> int | None:
    """What is added to how many tokens a mask keeps so far, also where that is 0 for those it does not keep."""
    total = 0
    while mask is not None:
        v, more = _source(v)
        total += more
        node = v.producer
        if node is None or not isinstance(node.op, (Cumsum, Mul)):
            return None
        if isinstance(node.op, Cumsum):
            return total if _source(node.value("x")) == (mask, 0) else None
        others = [x for x in node.arguments if _source(x) != (mask, 0)]
        if len(others) != 1:
            return None
        v = others[0]
    return None


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


def _source(v: Value) -> tuple[Value, int]:
    """Where the elements of a value come from, and the whole number that is added to all of them on the way."""
    total = 0
    while v.producer is not None:
        node = v.producer
        if isinstance(node.op, _MOVES):
            v = node.value("x")
            continue
        number = node.arguments[1].number if isinstance(node.op, (Add, Sub)) else None
        if number is None or number != int(number):
            break
        total += int(number) if isinstance(node.op, Add) else -int(number)
        v = node.arguments[0]
    return v, total
