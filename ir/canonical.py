"""Canonical forms that several ops share: each gives what to put in the place of a node, or None to leave it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .value import Node, Value

if TYPE_CHECKING:
    from .op import Op

Form = Callable[[Node], Value | None]
"""Called with new nodes going before the node; the op lists its forms in `canonical`."""


def made_by(v: Value | None, op: type[Op]) -> Node | None:
    """The node that makes a value, if it is a use of `op`."""
    node = None if v is None else v.producer
    return node if node is not None and isinstance(node.op, op) else None


def same_type(node: Node) -> Value | None:
    """reshape, expand, cast or slice to the type x already has: x."""
    x = node.value("x")
    return x if x.type == node.output.type else None


def neutral(number: float) -> Form:
    """x + 0, x * 1: x, where the shape stays."""

    def form(node: Node) -> Value | None:
        x = node.value("x")
        return x if node.value("y").number == number and x.type == node.output.type else None

    return form


def constant_right(node: Node) -> Value | None:
    """c + x is x + c."""
    x, y = node.value("x"), node.value("y")
    if x.number is None or y.number is not None:
        return None
    return x.graph.add(node.op, (y, x), node.attributes)[0]
