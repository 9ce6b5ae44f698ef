"""Softmax by meaning: exponentials over their sum, masked or not, before or after the product with values."""

from __future__ import annotations

import math

from ...ir import ops
from ...ir.graph import Graph, Node, Value
from ...ir.ops.elementwise import Cast, Div, Exp, Log, Mul, Sub
from ...ir.ops.linear import Matmul
from ...ir.ops.reduce import Sum
from ...ir.ops.shape import Expand, Reshape
from .check import Check
from .constants import scalar_of
from .masks import Masks
from .unread import erase_unread


def one_softmax(graph: Graph, masks: Masks, check: Check) -> int:
    """Write every quotient of exponentials and their sum as softmax. Gives how many.

    `e / sum(e)`, where e is exp(x), or that times zeros and ones, and `(e @ v) / sum(e)`; exp(x - log(sum(exp(x)))) is
    the same. What was taken off x before changes nothing, and is left to who reads the softmax.
    """
    made = 0
    for node in [n for n in graph if isinstance(n.op, (Div, Exp, Mul))]:
        if node.order < 0:
            continue
        with graph.at(node):
            found = _of_logarithm(node) if isinstance(node.op, Exp) else _quotient(node, masks)
        if found is None:
            continue
        new, scores = found
        products = {n for n in (*(v.producer for v in node.arguments), new.producer) if n is not None}
        if new.type == node.output.type and check.difference(node.output, new, {scores}, products) is None:
            graph.replace(node.output, new)
            erase_unread(graph, node.output)
            made += 1
        else:
            erase_unread(graph, new)
    return made


def _quotient(node: Node, masks: Masks) -> tuple[Value, Value] | None:
    """(the same by softmax, what is exponentiated) of e / sum(e) or (e @ v) / sum(e)."""
    for above, below in _divisions(node):
        found = _over_sum(above, below, masks)
        if found is not None:
            return found
    return None


def _divisions(node: Node) -> list[tuple[Value, Value]]:
    """(x, y) of x / y and of x * (1 / y)."""
    x, y = node.arguments
    if isinstance(node.op, Div):
        return [(x, y)]
    inverses = [(a, b.producer) for a, b in ((x, y), (y, x)) if b.producer is not None]
    return [(a, n.arguments[1]) for a, n in inverses if isinstance(n.op, Div) and scalar_of(n.arguments[0]) == 1]


def _over_sum(above: Value, below: Value, masks: Masks) -> tuple[Value, Value] | None:
    total = _total(below)
    if total is None:
        return None
    e, axis = total
    if above is e:
        return _weights(e, axis, masks)
    product = above.producer
    last = axis == -1 and below.shape[-1] == 1
    if last and product is not None and isinstance(product.op, Matmul) and product.arguments[0] is e:
        found = _weights(e, axis, masks)
        return None if found is None else (ops.matmul(found[0], product.arguments[1]), found[1])
    return None


def _total(v: Value) -> tuple[Value, int] | None:
    """(x, axis) of a sum of x over one axis, which stays with length 1, also repeated or reshaped to that."""
    node = v.producer
    while node is not None and isinstance(node.op, (Expand, Reshape)):
        node = node.value("x").producer
    if node is None or not isinstance(node.op, Sum):
        return None
    x, axis = node.value("x"), int(node.attributes["axis"])
    kept = tuple(1 if i == axis % x.rank else d for i, d in enumerate(x.shape))
    return (x, axis) if v.shape in (kept, x.shape) else None


def _weights(e: Value, axis: int, masks: Masks) -> tuple[Value, Value] | None:
    """(softmax, its operand without the mask) of exponentials, or of these times what is 0 or 1."""
    node = e.producer
    below = node.value("x").producer if node is not None and isinstance(node.op, Reshape) else node
    if below is not None and isinstance(below.op, Exp):
        scores = below.value("x")
        shaped = scores if below is node else scores.reshape(*e.shape)
        return ops.softmax(shaped, axis=axis), scores
    if node is None or not isinstance(node.op, Mul):
        return None
    x, y = node.arguments
    for exponential, kept in ((x, y), (y, x)):
        inner = exponential.producer
        if inner is None or not isinstance(inner.op, Exp) or exponential.shape != e.shape:
            continue
        keep = masks.indicator(kept)
        if isinstance(keep, Value):
            scores = inner.value("x")
            never = ops.constant(value=-math.inf, dtype=scores.dtype)
            return ops.softmax(ops.where(keep, scores, never), axis=axis), scores
    return None


def _of_logarithm(node: Node) -> tuple[Value, Value] | None:
    """(softmax, x) of exp(x - log(sum(exp(x))))."""
    difference = node.value("x").producer
    if difference is None or not isinstance(difference.op, Sub):
        return None
    x, logarithm = difference.arguments
    while logarithm.producer is not None and isinstance(logarithm.producer.op, (Cast, Expand)):
        logarithm = logarithm.producer.value("x")
    if logarithm.producer is None or not isinstance(logarithm.producer.op, Log):
        return None
    total = _total(logarithm.producer.value("x"))
    inner = None if total is None else total[0].producer
    if total is None or inner is None or not isinstance(inner.op, Exp) or inner.value("x") is not x:
        return None
    return ops.softmax(x, axis=total[1]), x
