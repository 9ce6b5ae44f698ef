"""What a graph does with each of its weights: which can be stored in blocks, along which axis, and which cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...ir.graph import Graph, Node, Value
from ...ir.ops.feed_forward import FeedForward, GatedFeedForward
from ...ir.ops.linear import Embedding, Linear
from ..decompose import inline_body
from ..pipelines import PIPELINES


@dataclass(frozen=True)
class Use:
    """A weight that linear layers or embeddings read and nothing else.

    axis: along which a linear layer sums (-1 or 0). multiplies, looks_up: who reads it. decides: a layer gives an
    output of the model, so that nothing after it evens out an error.
    """

    axis: int
    multiplies: bool
    looks_up: bool
    decides: bool


def uses_of(graph: Graph) -> Mapping[str, Use | str]:
    """By name of each float weight what it is used for, or why it cannot be stored in blocks. The graph is left."""
    graph = graph.copy()
    PIPELINES["encode"].run(graph)
    for node in [n for n in graph if isinstance(n.op, (FeedForward, GatedFeedForward))]:
        inline_body(graph, node)
    return {name: _use(graph, v) for name, v in graph.params.items() if v.dtype.is_float}


def _use(graph: Graph, v: Value) -> Use | str:
    if v.rank != 2:
        return f"is {v.type}, no matrix"
    users = v.users
    if not users or graph.is_output(v):
        return "is read by no layer"
    other = next((n for n in users if not _reads_matrix(n, v)), None)
    if other is not None:
        return f"is read by {other.op.name}, not by linear layers and embeddings only"
    layers = [n for n in users if isinstance(n.op, Linear)]
    axes = {0 if n.attributes["transposed"] else -1 for n in layers} or {-1}
    looks_up = len(layers) < len(users)
    if len(axes) > 1 or (looks_up and axes != {-1}):
        return "is read along both of its axes"
    return Use(axes.pop(), bool(layers), looks_up, any(_decides(graph, n) for n in layers))


def _reads_matrix(node: Node, v: Value) -> bool:
    """Whether a node reads a value as its weight and as nothing else."""
    name = "table" if isinstance(node.op, Embedding) else "w" if isinstance(node.op, Linear) else None
    return name is not None and node[name] is v and node.arguments.count(v) == 1


def _decides(graph: Graph, node: Node) -> bool:
    """Whether what a node gives is an output, but for elementwise arithmetic on it alone."""
    y = node.output
    while not graph.is_output(y):
        users = y.users
        if len(users) != 1 or not users[0].op.elementwise or len(users[0].outputs) != 1:
            return False
        y = users[0].output
    return True
