"""How many products a result goes through one after another, and how far off it may be where each is rounded."""

from __future__ import annotations

from collections.abc import Mapping

from ..ir.graph import Graph, Value
from ..ir.op import Op
from ..ir.ops.attention import Attention
from ..ir.ops.feed_forward import FeedForward, GatedFeedForward
from ..ir.ops.linear import Linear
from ..ir.ops.state_space import CausalConv, StateSpace
from ..ir.types import DType

SPREAD = 1.5
"""Rounding errors a product, in units of the type: its operands, its result, and what happens between two products."""
_PRODUCTS: Mapping[type[Op], int] = {
    Attention: 2,
    FeedForward: 2,
    GatedFeedForward: 2,
    Linear: 1,
    CausalConv: 1,
    StateSpace: 2,
}


def products_in_a_row(graph: Graph) -> int:
    """The longest chain of products on the way to an output."""
    depth: dict[Value, int] = {}
    longest = 0
    for node in graph:
        own = _PRODUCTS.get(type(node.op), int(node.op.heavy))
        found = own + max((depth.get(v, 0) for v in node.arguments), default=0)
        depth.update(dict.fromkeys(node.outputs, found))
        longest = max(longest, found)
    return longest


def rounding(graph: Graph, dtype: DType) -> float:
    """Largest difference that a graph in 16-bit floats may show, relative to the largest value: the distance of the
    type from 1 to the next number, times the products in a row, times SPREAD. 0 for wider types."""
    steps = {DType.f16: 2.0**-11, DType.bf16: 2.0**-8}
    return SPREAD * steps[dtype] * products_in_a_row(graph) if dtype in steps else 0.0
