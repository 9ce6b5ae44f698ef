"""One spelling for each thing: identities removed, reshapes and transposes merged, constants to the right."""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from ..ir.ops.feed_forward import Dropout
from ..ir.ops.gradient import Detach


def canonicalize(graph: Graph) -> int:
    """Apply the canonical forms of all ops, in one sweep from inputs to outputs. Gives how many fired."""
    fired = 0
    for node in graph:
        current: Node | None = node
        while current is not None:
            previous = current.previous
            replacement = _apply(graph, current)
            if replacement is None:
                break
            graph.replace(current.output, replacement)
            graph.erase(current)
            fired += 1
            made = replacement.producer
            current = made if made and (previous is None or made.order > previous.order) else None
    return fired


def _apply(graph: Graph, node: Node) -> Value | None:
    for form in node.op.canonical:
        with graph.at(node):
            replacement = form(node)
        if replacement is not None:
            return replacement
    return None


def remove_dropout(graph: Graph) -> int:
    """Drop dropout, and what only gradients see, from a graph that will not train. Gives how many."""
    removed = 0
    for node in graph:
        if isinstance(node.op, (Dropout, Detach)):
            graph.replace(node.output, node.value("x"))
            graph.erase(node)
            removed += 1
    return removed
