"""One rank's share of a graph: local shapes and head counts, and the collectives that make the ranks one model."""

from __future__ import annotations

from ..ir.clone import clone_node
from ..ir.errors import PassError
from ..ir.graph import Graph, Node, Value
from ..ir.ops.feed_forward import Dropout
from ..ir.ops.linear import is_row_parallel
from ..ir.types import TensorType
from ..ir.value import Attributes
from . import collectives
from .shard import Plan


def local_graph(plan: Plan, rank: int, group: str = "") -> Graph:
    """The graph that rank `rank` of `plan.size` runs: the same inputs and outputs, parameters as `plan.take` gives.

    group: name of the process group that the ranks are in; PyTorch needs it.
    """
    return _Share(plan, rank, group).run()


class _Share:
    def __init__(self, plan: Plan, rank: int, group: str) -> None:
        self.plan, self.rank, self.cuts = plan, rank, plan.cuts
        self.group: Attributes = {"group": group}
        self.graph = Graph(plan.graph.name)
        self.local: dict[Value, Value] = {}
        self.copies: dict[Value, Value] = {}
        self.learned: set[Value] = set()
        """Values of the whole graph that a gradient flows into."""

    def run(self) -> Graph:
        whole = self.plan.graph
        for k, v in whole.inputs.items():
            self.local[v] = self.graph.input(k, v.type)
        for k, v in whole.params.items():
            self.local[v] = self.graph.param(k, self.type(v), v.init)
        self.learned = {v for v in whole.params.values() if v.dtype.is_float}
        for node in whole:
            with self.graph.at(None, node.location):
                self.node(node)
        for k, v in whole.outputs.items():
            self.graph.output(k, self.local[v])
        return self.graph

    def type(self, v: Value) -> TensorType:
        return self.cuts[v].local(v.type, self.plan.size) if v in self.cuts else v.type

    def node(self, node: Node) -> None:
        if self.learned.intersection(node.arguments):
            self.learned.update(v for v in node.outputs if v.dtype.is_float)
        if is_row_parallel(node, self.cuts):
            made = (self.row_parallel(node),)
        elif any(v in self.cuts for v in node.outputs):
            made = self.share(node, {v: self.inside(v) for v in node.arguments})
        else:
            made = clone_node(node, self.graph, self.local)
        for old, new in zip(node.outputs, made, strict=True):
            if new.type != self.type(old):
                what = f"{node.op.name} is {new.type} on rank {self.rank}, expected {self.type(old)} of {old.type}"
                raise PassError(what, place=str(node.location))
            self.local[old] = new

    def inside(self, v: Value) -> Value:
        """An operand of a layer that is cut: a whole one is read by every rank, and gets all their gradients."""
        if v in self.cuts or v not in self.learned:
            return self.local[v]
        if v not in self.copies:
            self.copies[v] = collectives.add(collectives.COPY, self.local[v], self.group)
        return self.copies[v]

    def share(self, node: Node, operands: dict[Value, Value]) -> tuple[Value, ...]:
        if isinstance(node.op, Dropout):
            part: Attributes = {"axis": self.cuts[node.output].axis, "rank": self.rank, "size": self.plan.size}
            return (collectives.add(collectives.DROPOUT, operands[node.value("x")], {**node.attributes, **part}),)
        attributes = node.op.shard_attributes(node, self.cuts, self.plan.size)
        return clone_node(node, self.graph, operands, attributes=attributes)

    def row_parallel(self, node: Node) -> Value:
        """The bias comes after the sum: it would be added once by every rank."""
        x, w, b = self.local[node.value("x")], self.local[node.value("w")], node["b"]
        y = collectives.add(collectives.SUM, self.graph.add(node.op, (x, w), dict(node.attributes))[0], self.group)
        return y if b is None else y + self.local[b]
