"""Chains of reshapes and transposes in as few nodes as the same rearrangement takes."""

from __future__ import annotations

from ...ir import ops
from ...ir.graph import Graph, Node, Value
from ...ir.ops.position import Rope
from ...ir.ops.shape import Expand, Reshape, Transpose
from ..dce import dce
from .unread import erase_unread
from .views import Unaligned, View, built, rearranged

_LAYOUTS = (Reshape, Transpose)


def shorten_layouts(graph: Graph) -> int:
    """Rewrite rearrangements that fewer reshapes and transposes make. Gives how many."""
    shortened = sum(_one_token(graph, n) for n in [n for n in graph if isinstance(n.op, Rope)])
    for node in [n for n in graph if isinstance(n.op, _LAYOUTS)]:
        read = node.output.users
        if graph.is_output(node.output) or any(not isinstance(n.op, _LAYOUTS) for n in read):
            shortened += _shorten(graph, node)
    dce(graph)
    return shortened


def _shorten(graph: Graph, last: Node) -> bool:
    chain = [last]
    while (above := chain[-1].value("x").producer) is not None and isinstance(above.op, _LAYOUTS):
        chain.append(above)
    if len(chain) == 1 and isinstance(last.op, Reshape):
        return False
    view = View.of(chain[-1].value("x"))
    try:
        for node in reversed(chain):
            view.groups = rearranged(node, view.groups)
    except Unaligned:
        return False
    with graph.at(last):
        new = built(view, view.groups, expanded=True)
    better = _cost(new, view.source) < sum(map(_weight, chain)) and new.type == last.output.type
    if better:
        graph.replace(last.output, new)
    elif new is not view.source:
        erase_unread(graph, new)
    return better


def _cost(v: Value, source: Value) -> int:
    total = 0
    while v is not source and v.producer is not None:
        total += _weight(v.producer)
        v = v.producer.arguments[0]
    return total


def _weight(node: Node) -> int:
    """A transpose moves every element; a reshape moves none."""
    return 3 if isinstance(node.op, Transpose) else 1


def _one_token(graph: Graph, node: Node) -> bool:
    """Many tokens at one position with one head each, as one token with many heads: both lie alike."""
    x, positions = node.value("x"), node.value("positions")
    spread = positions.producer
    if x.rank != 4 or x.shape[2] != 1 or spread is None or not isinstance(spread.op, Expand):
        return False
    one = spread.value("x")
    batch, heads, _, width = x.shape
    if one.shape != (batch, 1) or heads == 1:
        return False
    with graph.at(node):
        y = ops.rope(x.reshape(batch, 1, heads, width), one, node.value("frequencies"), **node.attributes)
        graph.replace(node.output, y.reshape(*x.shape))
    return True
