"""Replace composite ops by their bodies."""

from __future__ import annotations

from collections.abc import Callable

from ..ir.graph import Graph, Node
from ..ir.op import body_of


def inline_body(graph: Graph, node: Node) -> None:
    """Put the body of a composite in place of the node, with the node's location."""
    body = body_of(node.op, [None if v is None else v.type for v in node.operands], node.attributes)
    names = node.op.signature.operand_names(len(node.operands))
    operands = {n: v for n, v in zip(names, node.operands, strict=True) if v is not None}
    with graph.at(node):
        results = graph.inline(body, operands)
    for old, new in zip(node.outputs, results, strict=True):
        graph.replace(old, new)
    graph.erase(node)


def decompose(graph: Graph, keep: Callable[[Node], bool] = lambda node: False) -> int:
    """Inline every composite that `keep` does not hold for, bodies of bodies too. Gives how many were inlined."""
    inlined = 0
    pending = [n for n in graph if n.op.body is not None]
    while pending:
        node = pending.pop()
        if keep(node):
            continue
        before = node.previous
        following = node.next
        inline_body(graph, node)
        inlined += 1
        start = before.next if before is not None else next(iter(graph), None)
        while start is not None and start is not following:
            if start.op.body is not None:
                pending.append(start)
            start = start.next
    return inlined
