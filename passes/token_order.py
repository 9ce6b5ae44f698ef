"""In whose order the columns of a value are: that of the tokens, or that of those which count, moved to the front.

`compact` numbers the tokens that a mask keeps. From call to call these numbers begin anew, so that rows moved by them
must be moved back before anything else sees them.
"""

from __future__ import annotations

from collections.abc import Collection

from ..ir.flow import Links
from ..ir.graph import Node, Value
from ..ir.ops.elementwise import Cast
from ..ir.ops.shape import Expand, Reshape, Slice, TakeAlongAxis
from ..ir.value import ancestors, leaves


class Orders:
    """The order of every value of a graph so far. mask: that of the stream, which alone may say what is moved."""

    def __init__(self, mask: Value | None) -> None:
        self.mask = mask
        self.moved: dict[Value, Node] = {}
        """Values that are not in the order of the tokens, and the node whose order they are in."""

    def node(self, node: Node, over: Collection[Value], links: Links) -> bool:
        """Note the orders of what a node gives. False if that would be another from call to call.

        over: its operands with an axis over tokens. links: those of these axes.
        """
        if node.op.compacts:
            self.moved.update(dict.fromkeys(node.outputs[:2], node))
            return self.is_pointwise(node.arguments[0])
        index = numbers(node["indices"]) if isinstance(node.op, TakeAlongAxis) else None
        if index is not None and index.producer is not None:
            before, after = (None, index.producer) if index.index == 0 else (index.producer, None)
            self.give(node, after)
            return self.moved.get(node.arguments[0]) is before
        orders = {self.moved.get(v) for v in over}
        found = next((n for n in orders if n is not None), None)
        if found is None:
            return True
        self.give(node, found)
        if node.op.states:
            return orders == {found} and [v.producer for v in counts_of(node)] == [found]
        return orders == {found} and not node.op.keys and not any(k.upto or k.shift != 0 for k in links)

    def give(self, node: Node, order: Node | None) -> None:
        if order is not None:
            self.moved.update(dict.fromkeys(node.outputs[:1] if node.op.states else node.outputs, order))

    def is_pointwise(self, mask: Value) -> bool:
        """Whether a mask says of each token what that of the stream says of it, or the same of all."""
        plain = (Cast, Reshape, Slice, Expand)
        nodes = ancestors(mask)
        return leaves(mask) in ([], [self.mask]) and all(
            isinstance(n.op, plain) or n.op.elementwise or n.op.constant for n in nodes
        )


def numbers(indices: Value | None) -> Value | None:
    """The output of `compact` that indices are, unchanged."""
    v = indices
    while v is not None and v.producer is not None and isinstance(v.producer.op, (Reshape, Expand)):
        (v,) = v.producer.arguments
    return v if v is not None and v.producer is not None and v.producer.op.compacts else None


def counts_of(node: Node) -> list[Value]:
    """What says how many steps of a layer with a state count; nothing would let it read the others as well."""
    return [v for name in node.op.signature.operands if name in node.op.counts and (v := node[name]) is not None]
