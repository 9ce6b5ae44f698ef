"""A graph that takes its past as inputs, read from its first token on: the past is empty, and its inputs go."""

from __future__ import annotations

from ...ir import ops
from ...ir.graph import Graph, Node, Value
from ...ir.ops.shape import Concat
from ...ir.types import Dim
from ..dce import dce
from ..symbols import substitute_symbols


def forget_past(graph: Graph) -> int:
    """Take away inputs of floats that only stand before what is new, as keys and values of a past do. Gives how many.

    The graph then reads all tokens at once, and what it gave out for the next call may go: the cache becomes ours.
    """
    pasts = {v: symbol for v in graph.inputs.values() if (symbol := _past_symbol(v)) is not None}
    if not pasts:
        return 0
    substitute_symbols(graph, dict.fromkeys(pasts.values(), 0))
    for v in pasts:
        for node in list(v.users):
            rest = node.arguments[1:]
            with graph.at(node):
                new = rest[0] if len(rest) == 1 else ops.concat(*rest, axis=node.attributes["axis"])
            graph.replace(node.output, new)
    dce(graph)
    graph.inputs = {k: v for k, v in graph.inputs.items() if v not in pasts}
    return len(pasts)


def _past_symbol(v: Value) -> str | None:
    """The symbol that counts the tokens of a past, if that is what an input is."""
    users = list(v.users)
    if not v.dtype.is_float or v.rank < 3 or not users:
        return None
    found = {_grown(v, node) for node in users}
    return found.pop() if len(found) == 1 else None


def _grown(v: Value, node: Node) -> str | None:
    if not isinstance(node.op, Concat) or node.arguments[0] is not v or v in node.arguments[1:]:
        return None
    axis: int = node.attributes["axis"]
    d = v.shape[axis]
    return d.name if isinstance(d, Dim) else None
