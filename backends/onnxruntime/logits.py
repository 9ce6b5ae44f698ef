"""Compute logits only where somebody wants them: the rows to keep are chosen before the large last product."""

from __future__ import annotations

from ...frontends.task import LOGITS
from ...ir.graph import Graph, Node, Value
from ...ir.ops.linear import Linear
from ...ir.ops.shape import gather, reshape
from ...ir.types import Dim, TensorType, i64
from ...passes.dce import dce
from ...passes.encode import stored_weight

ROWS = "logits_rows"
"""Input i64 [R]: which of the B*S positions, counted row by row, get logits; the output is then [R,V]."""


def select_rows(graph: Graph) -> int:
    """Give a graph with a past the input `logits_rows`; 1 if its head allows it, else 0.

    The head is the last linear and what follows it one position at a time.
    """
    logits = graph.outputs.get(LOGITS)
    if logits is None or logits.rank != 3 or not any(s.output for s in graph.slots):
        return 0
    chain = _head(logits)
    if chain is None:
        return 0
    hidden = chain[-1].value("x")
    with graph.at(None, chain[0].location):
        rows = graph.input(ROWS, TensorType(i64, (Dim.symbol("R"),)))
        batch, length, width = hidden.shape
        y = gather(reshape(hidden, shape=(batch * length, width)), rows, axis=-2)
        old = hidden
        for node in reversed(chain):
            operands = [y if v is old else v for v in node.operands]
            (y,) = graph.add(node.op, operands, node.attributes)
            old = node.output
    graph.replace(logits, y)
    dce(graph)
    return 1


def _head(logits: Value) -> list[Node] | None:
    """Nodes from the logits back to the last linear; None if one of them mixes positions or is read elsewhere."""
    chain: list[Node] = []
    v = logits
    while v.producer is not None:
        node = v.producer
        others = [a for a in node.arguments[1:] if a is not v]
        if len(node.outputs) != 1 or not all(_same_everywhere(a) for a in others):
            return None
        if isinstance(node.op, Linear):
            return [*chain, node] if v.rank == 3 else None
        if not node.op.elementwise:
            return None
        chain.append(node)
        v = node.arguments[0]
        if v.shape != logits.shape:
            return None
    return None


def _same_everywhere(v: Value) -> bool:
    """A parameter or a constant along the last axis only."""
    fixed = stored_weight(v) is not None or (v.producer is not None and v.producer.op.constant)
    return fixed and v.rank <= 2 and not v.type.symbols
