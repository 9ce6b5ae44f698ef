"""Softmax that a file writes out: exponentials over their sum."""

from __future__ import annotations

from ...ir import ops
from ...ir.graph import Graph, Node, Value
from ...ir.ops.elementwise import Div, Exp, Sub
from ...ir.ops.reduce import Sum
from ...ir.ops.shape import Expand, Reshape
from .check import Check
from .unread import erase_unread


def raise_softmax(graph: Graph, check: Check) -> int:
    """Replace exp(x - m) / sum(exp(x - m)) by softmax, whatever is taken off each row. Gives how many."""
    return sum(_replace(graph, node, check) for node in graph if isinstance(node.op, Div))


def _replace(graph: Graph, node: Node, check: Check) -> bool:
    exponentials, total = (_below(v) for v in node.arguments)
    e, summed = exponentials.producer, total.producer
    if e is None or summed is None or not isinstance(e.op, Exp) or not isinstance(summed.op, Sum):
        return False
    added = summed.value("x")
    if _below(added) is not exponentials or node.output.type.elements != exponentials.type.elements:
        return False
    centred = e.value("x")
    shifted = centred.producer
    sources = [shifted.arguments[0]] if shifted is not None and isinstance(shifted.op, Sub) else []
    return any(_same(graph, node, x, added, summed, check) for x in (*sources, centred))


def _same(graph: Graph, node: Node, x: Value, added: Value, summed: Node, check: Check) -> bool:
    """Put the softmax of x, in the axes of what is added up, in the place of a quotient, if it is that."""
    old = node.output
    if x.type.elements != added.type.elements:
        return False
    with graph.at(node):
        y = ops.softmax(_reshaped(x, added), axis=summed.attributes["axis"])
        new = _reshaped(y, old)
    if check.difference(old, new, {x}, ()) is not None:
        erase_unread(graph, new)
        return False
    graph.replace(old, new)
    erase_unread(graph, old)
    return True


def _below(v: Value) -> Value:
    """Below reshapes and repeats along axes."""
    while v.producer is not None and isinstance(v.producer.op, (Reshape, Expand)):
        v = v.producer.value("x")
    return v


def _reshaped(x: Value, like: Value) -> Value:
    return x if x.shape == like.shape else x.reshape(*like.shape)
