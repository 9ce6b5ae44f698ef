"""A graph that takes its past as inputs, read from its first token on: the past is empty, and its inputs go."""

from __future__ import annotations

from ...ir import ops
from ...ir.errors import PassError
from ...ir.graph import Graph, Node, Value
from ...ir.ops.cache import CacheAppend
from ...ir.ops.elementwise import Cast
from ...ir.ops.shape import Concat, Reshape, Slice, Transpose
from ...ir.types import Dim
from ..dce import dce
from ..past_inputs import past_symbols
from ..symbols import substitute_symbols


def forget_past(graph: Graph) -> int:
    """Take away inputs that only stand before what is new, as keys and values of a past do. Gives how many.

    The graph then reads all tokens at once, and what it gave out for the next call may go: the cache becomes ours.
    Raises PassError with the node for a past that something else reads.
    """
    pasts = past_symbols(graph)
    if not pasts:
        return 0
    symbols = frozenset(pasts.values())
    for v in pasts:
        _check_counted(v, symbols)
    substitute_symbols(graph, dict.fromkeys(symbols, 0))
    for v in pasts:
        _forget(graph, v)
    dce(graph)
    graph.inputs = {k: v for k, v in graph.inputs.items() if v not in pasts}
    return len(pasts)


def _check_counted(v: Value, symbols: frozenset[str]) -> None:
    """Raise PassError for a past that has another size which would go with the number of its tokens."""
    for d in v.shape:
        if isinstance(d, Dim) and d.name is None and symbols & d.symbols:
            raise PassError(f"{v.name} is {v.type}: what it holds of a past is open", place=v.graph.name)


def _forget(graph: Graph, past: Value) -> None:
    """Put what is new in the place of what the past, moved about, is joined with."""
    waiting = [past]
    while waiting:
        v = waiting.pop()
        for node in list(v.users):
            if isinstance(node.op, (Cast, Reshape, Slice, Transpose)):
                waiting.append(node.output)
                continue
            with graph.at(node):
                new = _new(node, v)
                graph.replace(node.output, new)


def _new(node: Node, past: Value) -> Value:
    if isinstance(node.op, Concat) and past in node.arguments:
        rest = [x for x in node.arguments if x is not past]
        if rest:
            return rest[0] if len(rest) == 1 else ops.concat(*rest, axis=node.attributes["axis"])
    if isinstance(node.op, CacheAppend) and node["past"] is past:
        return ops.transpose(node.value("new"), permutation=(0, 2, 1, 3))
    what = f"{node.op.name} reads the past {past.type} by itself, not joined with what is new"
    raise PassError(what, place=str(node.location))
