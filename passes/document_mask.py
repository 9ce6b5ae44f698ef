"""Documents that are packed into one row do not see each other."""

from __future__ import annotations

from ..ir.errors import PassError
from ..ir.graph import Graph
from ..ir.ops import equal, logical_and, reshape
from ..ir.ops.recurrent import Recurrent
from ..ir.types import TensorType, i64

DOCUMENTS = "document_ids"


def separate_documents(graph: Graph) -> int:
    """Self-attention sees a key only if it has the query's `document_ids` i64 [B,S], an input that is added.

    Run it on the plain graph, before a cache. Gives the number of attention ops. Raises PassError for a graph without
    attention or with recurrent layers, and where queries and keys are not the same tokens.
    """
    nodes = [node for node in graph if node.op.keys]
    recurrent = sum(isinstance(node.op, Recurrent) for node in graph)
    if not nodes or recurrent:
        what = f"{graph.name} has {len(nodes)} attention and {recurrent} recurrent layers"
        raise PassError(f"{what}: a mask cannot keep documents apart", hint="train without document boundaries")
    for node in nodes:
        q, k = node.value("q"), node.value("k")
        if q.shape[:2] != k.shape[:2]:
            raise PassError(f"queries are {q.type} but keys {k.type}: they are not the same tokens", place=graph.name)
    batch, length = nodes[0].value("q").shape[:2]
    ids = graph.input(DOCUMENTS, TensorType(i64, (batch, length)))
    with graph.at(nodes[0]):
        same = equal(reshape(ids, shape=(batch, 1, length, 1)), reshape(ids, shape=(batch, 1, 1, length)))
    for node in nodes:
        mask = node["mask"]
        with graph.at(node):
            graph.set_operand(node, node.place_of("mask"), same if mask is None else logical_and(mask, same))
    return len(nodes)
