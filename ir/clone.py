"""Copy nodes from one graph, or one place, to another: the one way in which a node is made from a node."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .value import Attributes, Location, Node, Value, ancestors

if TYPE_CHECKING:
    from .graph import Graph


def clone(
    nodes: Iterable[Node], into: Graph, mapping: dict[Value, Value], *, location: Location | None = None
) -> dict[Value, Value]:
    """Insert copies of `nodes`, given in topological order, at the current point of `into`; gives `mapping`.

    mapping: where each value went; it is extended. An operand that it lacks is brought along: a parameter under its
    path, an input under its name, any other value with the nodes that it is computed from. A copy has the place in
    the user's source that the node has, or `location`.
    """
    for node in nodes:
        for v in node.arguments:
            bring(v, into, mapping, location=location)
        clone_node(node, into, mapping, location=location)
    return mapping


def bring(v: Value, into: Graph, mapping: dict[Value, Value], *, location: Location | None = None) -> Value:
    """The value of `into` that stands for `v`: what `mapping` says, or a copy of all that `v` is computed from."""
    if v in mapping:
        return mapping[v]
    if v.producer is None:
        if v.is_param:
            mapping[v] = into.param(v.name, v.type, v.init)
        else:
            mapping[v] = into.input_of(v.name, v.type)
        return mapping[v]
    for node in ancestors(v, known=mapping):
        for operand in node.arguments:
            if operand.producer is None:
                bring(operand, into, mapping)
        clone_node(node, into, mapping, location=location)
    return mapping[v]


def clone_node(
    node: Node,
    into: Graph,
    mapping: dict[Value, Value],
    *,
    attributes: Attributes | None = None,
    location: Location | None = None,
) -> tuple[Value, ...]:
    """Insert a copy of one node whose operands all are in `mapping`, which is extended; gives its outputs.

    attributes: those of the copy, if they differ. Where attributes or types of operands differ, the shape rule of the
    op gives the types, and raises OpError for what it does not allow; otherwise they are those of the node.
    """
    operands = [None if v is None else mapping[v] for v in node.operands]
    alike = attributes is None and all(new.type == old.type for old, new in _pairs(node, operands))
    place = location or node.location
    if alike:
        copy = Node(node.op, operands, dict(node.attributes), place)
        copy.outputs = [Value(into, v.type, v.name, copy, v.index) for v in node.outputs]
        into.place(copy)
        made = tuple(copy.outputs)
    else:
        made = into.add(node.op, operands, dict(node.attributes if attributes is None else attributes), place)
    mapping.update(zip(node.outputs, made, strict=True))
    return made


def _pairs(node: Node, operands: Iterable[Value | None]) -> list[tuple[Value, Value]]:
    return [(old, new) for old, new in zip(node.operands, operands, strict=True) if old is not None and new is not None]
