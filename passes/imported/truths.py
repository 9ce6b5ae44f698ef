"""Numbers that are not 0 as truth values, in the one spelling that kernels of key masks are matched by."""

from __future__ import annotations

from ...ir.graph import Graph, Node
from ...ir.ops.logic import Equal, LogicalNot
from ...ir.types import bool_
from ..dce import dce


def cast_truths(graph: Graph) -> int:
    """Replace not (x = 0) by a cast of x to bool. Gives how many."""
    found = [n for n in graph if isinstance(n.op, LogicalNot) and (inner := n.value("x").producer) is not None
             and isinstance(inner.op, Equal) and _is_zero(inner)]  # fmt: skip
    for node in found:
        inner = node.value("x").producer
        assert inner is not None
        with graph.at(node):
            graph.replace(node.output, inner.arguments[0].cast(bool_))
    dce(graph)
    return len(found)


def _is_zero(node: Node) -> bool:
    """Whether a comparison is with the number 0, which leaves the shape as it is."""
    x, y = node.arguments
    return y.number == 0 and x.shape == node.output.shape and not x.dtype.is_float and x.dtype is not bool_
