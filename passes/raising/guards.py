"""Guards of rows without a key: attention gives zeros there, and what is written around it to give them goes."""

from __future__ import annotations

from collections.abc import Iterable

from ...ir.graph import Graph, Node, Value
from ...ir.ops.elementwise import Cast
from ...ir.ops.logic import Equal, Less, LogicalNot, Where
from ...ir.ops.reduce import Any_, Sum
from ...ir.ops.shape import Reshape, Transpose
from ...ir.types import bool_
from .affine import band
from .check import Check
from .conjuncts import conjuncts, flipped
from .constants import scalar_of
from .masks import Masks, Truth
from .unread import erase_unread

_MOVES = (Reshape, Transpose)


def drop_guard(graph: Graph, node: Node, parts: Iterable[Truth], masks: Masks, check: Check) -> bool:
    """Drop `where(row has no key, 0, attention)`, if the rows are those of the attention. Gives whether it was there.

    parts: what must be true of a key to be attended to, as the mask of the attention was read.
    """
    v = node.output
    while len(v.users) == 1 and isinstance(v.users[0].op, _MOVES) and not graph.is_output(v):
        v = v.users[0].output
    guard = v.users[0] if len(v.users) == 1 and not graph.is_output(v) else None
    if guard is None or not isinstance(guard.op, Where) or v not in guard.operands[1:]:
        return False
    place = guard.operands.index(v)
    if scalar_of(guard.arguments[3 - place]) != 0 or guard.output.type != v.type:
        return False
    rows = _rows(guard.value("condition"), empty=place == 2)
    if rows is None or not _follows(rows, node, list(parts), masks):
        return False
    cuts = {node.value(name) for name in "qkv"}
    if check.difference(guard.output, v, cuts, {node}) is not None:
        return False
    graph.replace(guard.output, v)
    erase_unread(graph, guard.output)
    return True


def _rows(condition: Value, *, empty: bool) -> Value | None:
    """The bool whose rows have nothing true where a condition is true (empty), or something (not empty)."""
    node = condition.producer
    while node is not None and isinstance(node.op, (*_MOVES, LogicalNot)):
        empty = empty != isinstance(node.op, LogicalNot)
        node = node.value("x").producer
    if node is None:
        return None
    if isinstance(node.op, Any_):
        return None if empty else node.value("x")
    if not isinstance(node.op, (Less, Equal)) or not empty:
        return None
    x, y = node.arguments
    if scalar_of(y) != (1 if isinstance(node.op, Less) else 0):
        return None
    total = x.producer
    if total is None or not isinstance(total.op, Sum) or total.attributes["axis"] != -1:
        return None
    counted = total.value("x").producer
    if counted is None or not isinstance(counted.op, Cast) or counted.value("x").dtype != bool_:
        return None
    return counted.value("x")


def _follows(rows: Value, node: Node, parts: list[Truth], masks: Masks) -> bool:
    """Whether every key that the attention attends to is true in `rows`."""
    if rows.rank < 2:
        return False
    length, keys = node.value("q").shape[1], node.value("k").shape[1]
    for part in conjuncts(masks.truth(rows)):
        if part is True or any(part is p for p in parts):
            continue
        found = band(flipped(part), length, keys, masks.read) if isinstance(part, Value) else None
        if found is None or (found.causal and not node.attributes["causal"]):
            return False
        if found.window is not None and found.window != node.attributes["window"]:
            return False
    return True
