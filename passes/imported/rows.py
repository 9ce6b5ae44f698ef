"""Rows and tokens apart again: layers over all tokens of a batch in one axis work on [B,S,...] instead."""

from __future__ import annotations

from ...ir import ops
from ...ir.errors import MonographError, OpError
from ...ir.graph import Graph, Node, Value
from ...ir.ops.shape import Reshape
from ...ir.types import Dim, DimLike, Shape, exact_div
from ..dce import dce


def unflatten(graph: Graph, batch: DimLike, symbol: str) -> int:
    """Give every value [B*S,...] the shape [B,S,...], where each row of it depends on that row alone. Gives how many.

    Tokens of all rows in one axis have no past that could be put before them. Where an axis has n places for each
    token, such as one for each of its experts, [B*S*n,...] becomes [B,S,n,...].
    """
    rows = _Rows(batch, Dim.symbol(symbol))
    for node in graph:
        rows.node(node)
    dce(graph)
    return len(rows.apart)


class _Rows:
    """What values are with rows and tokens apart, as far as that can be told."""

    def __init__(self, batch: DimLike, length: Dim) -> None:
        self.batch, self.length, self.flat = batch, length, batch * length
        self.apart: dict[Value, Value] = {}

    def of(self, d: DimLike) -> Shape | None:
        """The axes that one of tokens becomes; None where it is none."""
        if d == self.flat:
            return self.batch, self.length
        count = _times(d, self.flat)
        return None if count is None else (self.batch, self.length, count)

    def node(self, node: Node) -> None:
        """Note what the outputs of a node are, and let a reshape read what is apart already."""
        rows = [self.of(v.shape[0]) if v.rank else None for v in node.outputs]
        if rows[0] is not None and rows.count(rows[0]) == len(rows):
            self.rebuilt(node, rows[0])
        if isinstance(node.op, Reshape) and node.output not in self.apart and node.value("x") in self.apart:
            node.outputs[0].graph.set_operand(node, 0, self.apart[node.value("x")])

    def rebuilt(self, node: Node, rows: Shape) -> None:
        graph = node.outputs[0].graph
        with graph.at(node):
            if isinstance(node.op, Reshape):
                x = node.value("x")
                x = self.apart.get(x, x)
                self.apart[node.output] = ops.reshape(x, shape=(*rows, *node.output.shape[1:]))
                return
            if not self.by_row(node):
                return
            operands = [self.apart.get(v, v) if v is not None else None for v in node.operands]
            shape = node.outputs[0].shape
            attributes = {k: (*rows, *shape[1:]) if x == shape else x for k, x in node.attributes.items()}
            try:
                made = graph.add(node.op, operands, attributes)
            except OpError:
                return
        if all(new.shape == (*rows, *old.shape[1:]) for old, new in zip(node.outputs, made, strict=True)):
            self.apart.update(zip(node.outputs, made, strict=True))

    def by_row(self, node: Node) -> bool:
        """Whether row i of every output reads row i of the operands that are known apart, and nothing of other rows."""
        carried = [i for i, v in enumerate(node.operands) if v is not None and v in self.apart]
        unknown = [v for v in node.operands if v is not None and v not in self.apart]
        others = [v for v in unknown if any(self.of(d) for d in v.shape)]
        links = node.op.links(*node.operands, **node.attributes)
        first = [k for k in links if k.operand in carried and k.axis == 0]
        straight = all(k.to == 0 and k.shift == 0 and not k.upto for k in first)
        only = all(k in first for k in links if k.to == 0)
        return bool(carried) and not others and straight and only and {k.operand for k in first} == set(carried)


def _times(d: DimLike, by: DimLike) -> int | None:
    """How many times a size is another one; None where that is no number above 1."""
    try:
        found = exact_div(d, by)
    except MonographError:
        return None
    return found if isinstance(found, int) and found > 1 else None
