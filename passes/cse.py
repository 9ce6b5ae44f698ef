"""Compute equal expressions once."""

from __future__ import annotations

from typing import Any

from ..ir.graph import Graph, Value


def cse(graph: Graph) -> int:
    """Merge nodes with the same op, operands and attributes; random ops stay. Gives the number of nodes merged."""
    known: dict[tuple[Any, ...], list[Value]] = {}
    merged = 0
    for node in graph:
        if node.op.random:
            continue
        operands = node.operands
        if node.op.commutative:
            operands = sorted(operands, key=id)
        key = (node.op, *map(id, operands), *((k, repr(v)) for k, v in sorted(node.attributes.items())))
        first = known.setdefault(key, node.outputs)
        if first is not node.outputs:
            for old, new in zip(node.outputs, first, strict=True):
                graph.replace(old, new)
            graph.erase(node)
            merged += 1
    return merged
