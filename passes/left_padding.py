"""Whether rows of different lengths may run together, padded on the left: that changes nothing for any of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir.flow import Link
from ..ir.graph import Graph, Node, Value
from ..ir.ops.cache import CacheAppend, CacheRead
from ..ir.ops.elementwise import Cast, Mul, Sub
from ..ir.ops.feed_forward import Relu, Silu
from ..ir.ops.logic import Comparison, LogicalAnd
from ..ir.ops.shape import Expand, Iota, Reshape, Slice, Transpose
from ..ir.slots import TOKENS
from ..ir.types import Dim, bool_
from ..ir.value import leaves
from .token_order import counts_of

_MOVES = (Reshape, Transpose, Expand, Cast)
"""Ops that give the elements of their operand as they are."""


def why_alone(graph: Graph) -> str:
    """Why rows of different lengths must run one by one in a serving graph; "" if they need not.

    Padded on the left, the tokens of a row stand in one piece and end with those of the others. That is right where
    masks hide the padding, and where columns are only held against each other.
    """
    stream = graph.stream or TOKENS
    mask = graph.inputs.get(stream.mask)
    if mask is None:
        return "the model has no mask that could hide padding"
    for node in graph:
        reason = _reason(node, mask, stream.length)
        if reason:
            return f"{node.op.name} at {node.location} {reason}"
    return ""


def _reason(node: Node, mask: Value, length: str) -> str:
    if node.op.keys:
        if any(_over_tokens(node.value(k), length) for k in node.op.keys):
            hiding = [v for k in node.op.masks if (v := node[k]) is not None and v.dtype is bool_]
            return "" if any(is_hiding(v, mask, length) for v in hiding) else "has no mask that hides padding"
    elif isinstance(node.op, Iota):
        return "" if _is_relative(node.output) or not _over_tokens(node.output, length) else "counts columns"
    elif isinstance(node.op, Slice):
        x = node.value("x")
        axis: int = node.attributes["axis"]
        if x is not mask and _over(x, axis, length) and not _ends_with(node, x, axis) and not _masked(x, mask):
            return "reads columns where padding may stand"
    elif node.op.states:
        known = passes_over(node, mask) or _masked(node.arguments[0], mask)
        return "" if known or not _over_tokens(node.arguments[0], length) else "would read padding"
    elif _mixes(node, length) and not _masked(node.arguments[0], mask):
        return "reads tokens where padding may stand"
    return ""


def passes_over(node: Node, mask: Value) -> bool:
    """Whether a layer with a state is told by the mask which tokens count, wherever they are."""
    length = (mask.graph.stream or TOKENS).length
    if any(v.producer is None or not v.producer.op.compacts or mask not in leaves(v) for v in counts_of(node)):
        return False
    told = node["mask"] if "mask" in node.op.signature.operands else None
    return bool(counts_of(node)) or (told is not None and is_hiding(told, mask, length))


def is_hiding(v: Value, mask: Value, length: str) -> bool:
    """Whether a bool value whose last axis runs over tokens is false wherever the mask is 0."""
    found = _where_hidden(v, mask, length)
    return found is not None and not found


def _where_hidden(v: Value, mask: Value, length: str = "") -> Any:
    """The number that a value is where the mask is 0; None if that is not one number.

    length: what counts tokens, if those of the mask must be along the last axis.
    """
    node = v.producer
    if v is mask or node is None:
        return np.int64(0) if v is mask else None
    if node.op.constant:
        return None if v.number is None else np.asarray(v.number, v.dtype.numpy)
    kept = [_where_hidden(x, mask, length) for x in node.arguments]
    if isinstance(node.op, (*_MOVES, Slice)):
        if isinstance(node.op, Cast):
            return None if kept[0] is None else kept[0].astype(v.dtype.numpy)
        return kept[0] if not length or _keeps_columns(node, length) else None
    if isinstance(node.op, (LogicalAnd, Mul)) and any(x is not None and not x for x in kept):
        return np.asarray(0, v.dtype.numpy)
    if not node.op.elementwise or node.op.numpy is None or any(x is None for x in kept):
        return None
    with np.errstate(all="ignore"):
        return node.op.numpy(*kept, **node.attributes)


def _keeps_columns(node: Node, length: str) -> bool:
    """Whether the last axis of what a node gives is that of its operand, over the same tokens or the newest of them."""
    x, v = node.arguments[0], node.output
    if isinstance(node.op, Slice):
        last = node.attributes["axis"] % x.rank == x.rank - 1
        return not last or not _over(x, x.rank - 1, length) or _ends_with(node, x, x.rank - 1)
    if isinstance(node.op, Transpose) and node.attributes["permutation"][-1] != x.rank - 1:
        return False
    return x.rank > 0 and x.shape[-1] == v.shape[-1] and _over(v, v.rank - 1, length)


def _over(v: Value, axis: int, length: str) -> bool:
    d = v.shape[axis]
    return isinstance(d, Dim) and length in d.symbols


def _over_tokens(v: Value, length: str) -> bool:
    return any(_over(v, axis, length) for axis in range(v.rank))


def _ends_with(node: Node, x: Value, axis: int) -> bool:
    """Whether a slice takes the newest columns."""
    return node.attributes["start"] + node.attributes["length"] == x.shape[axis]


def _mixes(node: Node, length: str) -> bool:
    """Whether a node other than attention reads from token to token; a cache only keeps them for who reads it."""
    if (
        isinstance(node.op, (CacheAppend, CacheRead))
        or node.op.compacts
        or not any(_over_tokens(v, length) for v in node.arguments)
    ):
        return False
    for link in node.op.links(*node.operands, **node.attributes):
        given = node.operands[link.operand]
        over = given is not None and _over(given, link.axis, length)
        if over and (link.to is None or link.upto or not _ends_together(node, link)):
            return True
    return False


def _ends_together(node: Node, link: Link) -> bool:
    """Whether the newest column of an operand is the newest of the output, as where tokens are added to a past."""
    given = node.operands[link.operand]
    if given is None or link.to is None or link.shift == 0:
        return True
    return link.shift == node.outputs[link.output].shape[link.to] - given.shape[link.axis]


def _masked(v: Value, mask: Value) -> bool:
    """Whether a value is 0 where the mask is, because of what it is made of alone or because of a factor of it."""
    found = _where_hidden(v, mask)
    if found is not None:
        return not found
    node = v.producer
    if node is None:
        return False
    if isinstance(node.op, Mul):
        return any(_masked(x, mask) for x in node.arguments)
    if node.op.states:
        return v.index == 0 and passes_over(node, mask)
    return isinstance(node.op, (*_MOVES, Slice, Silu, Relu)) and _masked(node.value("x"), mask)


def _is_relative(v: Value) -> bool:
    """Whether a count of columns is only subtracted from another, or compared with one."""
    for node in v.users:
        if isinstance(node.op, (Sub, Comparison)):
            if not all(_counts(x) for x in node.arguments):
                return False
        elif isinstance(node.op, _MOVES):
            if not _is_relative(node.output):
                return False
        else:
            return False
    return True


def _counts(v: Value) -> bool:
    """Whether a value is a count of columns and nothing else."""
    node = v.producer
    while node is not None and (isinstance(node.op, _MOVES)):
        node = node.value("x").producer
    return node is not None and isinstance(node.op, Iota)
