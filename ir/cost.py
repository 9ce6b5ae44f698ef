"""What a graph costs: the sum of its ops' cost models, as an expression in its open dimensions."""

from __future__ import annotations

from collections.abc import Mapping

from .graph import Graph
from .types import Dim, DimLike


def flops_of(graph: Graph, **sizes: int) -> DimLike:
    """Floating-point operations of one call, as an expression in the dimensions that `sizes` leaves open."""
    total: DimLike = 0
    for node in graph:
        total = total + node.op.flops(*node.operands, **node.attributes)
    return total.substitute(sizes) if isinstance(total, Dim) else total


def at(cost: DimLike, sizes: Mapping[str, DimLike]) -> int:
    """A cost where every open dimension has a size. Raises ValueError naming one that has none."""
    value = cost.substitute(sizes) if isinstance(cost, Dim) else cost
    if not isinstance(value, int):
        raise ValueError(f"{value} is open: sizes are given for {', '.join(sizes)}")
    return value
