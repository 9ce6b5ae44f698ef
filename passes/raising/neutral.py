"""Products with ones and sums with zeros that a file fills whole tensors with."""

from __future__ import annotations

from ...ir.graph import Graph, Node, Value
from ...ir.op import Op
from ...ir.ops.elementwise import Add, Mul
from ...ir.ops.shape import expand
from .constants import scalar_of

_NEUTRAL: dict[type[Op], float] = {Add: 0.0, Mul: 1.0}


def drop_neutral(graph: Graph) -> int:
    """Replace x * ones and x + zeros of any shape by x, as often as the shape says. Gives how many.

    One element fills nothing: of one pair of channels that is turned it is the frequency, which is 1.
    """
    dropped = 0
    for node in graph:
        kept = _kept(node)
        if kept is not None:
            with graph.at(node):
                whole = kept if kept.type == node.output.type else expand(kept, shape=node.output.shape)
            graph.replace(node.output, whole)
            graph.erase(node)
            dropped += 1
    return dropped


def _kept(node: Node) -> Value | None:
    number = _NEUTRAL.get(type(node.op))
    if number is None:
        return None
    x, y = node.arguments
    pairs = ((x, y), (y, x))
    return next((a for a, b in pairs if b.type.elements != 1 and scalar_of(b) == number), None)
