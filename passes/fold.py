"""Evaluate what depends on constants alone. Expressions over parameters stay: weights are read last (ir/weights.py)."""

from __future__ import annotations

from typing import Any

from ..ir.graph import Graph, Node
from ..ir.interpret import Array, evaluate
from ..ir.types import Dim

LIMIT = 4096
"""Elements of a result beyond which folding would only make the text unreadable."""


def fold(graph: Graph) -> int:
    """Replace constant expressions by constants. Gives how many nodes were folded."""
    folded = 0
    for node in graph:
        operands = [v.producer for v in node.arguments]
        if not operands or node.op.random or len(node.outputs) != 1:
            continue
        if not all(n is not None and n.op.constant for n in operands):
            continue
        size = node.output.type.elements
        # Written as nested tuples, [0,3] would come back as [0].
        if isinstance(size, Dim) or not 0 < size <= LIMIT:
            continue
        values = [None if v is None else _number(v.producer) for v in node.operands]
        (result,) = evaluate(node.op, values, node.attributes, {})
        with graph.at(node):
            constant = graph.constant(_nested(result.tolist()), node.output.dtype)
        graph.replace(node.output, constant)
        graph.erase(node)
        folded += 1
    return folded


def _number(node: Node | None) -> Array:
    assert node is not None
    return evaluate(node.op, [], node.attributes, {})[0]


def _nested(value: Any) -> Any:
    return tuple(_nested(v) for v in value) if isinstance(value, list) else value  # pyright: ignore
