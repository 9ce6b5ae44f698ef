"""Rows and tokens apart again: layers over all tokens of a batch in one axis work on [B,S,...] instead."""

from __future__ import annotations

from ...ir import ops
from ...ir.errors import OpError
from ...ir.graph import Graph, Node, Value
from ...ir.ops.shape import Reshape
from ...ir.types import Dim, DimLike, Shape
from ..dce import dce


def unflatten(graph: Graph, batch: DimLike, symbol: str) -> int:
    """Give every value [B*S,...] the shape [B,S,...], where each row of it depends on that row alone. Gives how many.

    Tokens of all rows in one axis have no past that could be put before them.
    """
    length = Dim.symbol(symbol)
    flat = batch * length
    apart: dict[Value, Value] = {}
    for node in graph:
        _apart(node, flat, (batch, length), apart)
        if isinstance(node.op, Reshape) and node.output not in apart and node.value("x") in apart:
            graph.set_operand(node, 0, apart[node.value("x")])
    dce(graph)
    return len(apart)


def _apart(node: Node, flat: DimLike, rows: Shape, apart: dict[Value, Value]) -> None:
    """Note in `apart` what the outputs of a node are with rows and tokens apart, if that can be told."""
    if not all(v.rank and v.shape[0] == flat for v in node.outputs):
        return
    graph = node.outputs[0].graph
    with graph.at(node):
        if isinstance(node.op, Reshape):
            x = node.value("x")
            x = apart.get(x, x)
            apart[node.output] = ops.reshape(x, shape=(*rows, *node.output.shape[1:]))
            return
        if not _by_row(node, flat, apart):
            return
        operands = [apart.get(v, v) if v is not None else None for v in node.operands]
        try:
            made = graph.add(node.op, operands, dict(node.attributes))
        except OpError:
            return
    if all(new.shape == (*rows, *old.shape[1:]) for old, new in zip(node.outputs, made, strict=True)):
        apart.update(zip(node.outputs, made, strict=True))


def _by_row(node: Node, flat: DimLike, apart: dict[Value, Value]) -> bool:
    """Whether row i of every output reads row i of the operands that are known apart, and nothing of other rows."""
    carried = [i for i, v in enumerate(node.operands) if v is not None and v in apart]
    others = [v for v in node.operands if v is not None and v not in apart and flat in v.shape]
    links = node.op.links(*node.operands, **node.attributes)
    first = [k for k in links if k.operand in carried and k.axis == 0]
    straight = all(k.to == 0 and k.shift == 0 and not k.upto for k in first)
    only = all(k in first for k in links if k.to == 0)
    return bool(carried) and not others and straight and only and {k.operand for k in first} == set(carried)
