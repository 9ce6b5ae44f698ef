"""Numbers that are known before a graph runs: constants, and what moves or converts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...ir.graph import Value
from ...ir.interpret import Array, evaluate_node
from ...ir.ops.elementwise import Cast
from ...ir.ops.shape import Expand, Reshape
from ...ir.types import DType, bool_

Read = Callable[[str], Array]
"""The array of a parameter, by its path."""

MOST = 64
"""Nodes that are computed for their numbers, at most."""
LARGEST = 1 << 24
"""Elements of each of them, at most."""


class Reader:
    """Reads parameters, and remembers which: what was decided by their numbers is compared with these."""

    def __init__(self, read: Read) -> None:
        self.read = read
        self.names: set[str] = set()

    def __call__(self, name: str) -> Array:
        self.names.add(name)
        return self.read(name)


def scalar_of(v: Value) -> float | None:
    """The one number that all elements of a value are, if that is known; an axis of size 1 does not matter."""
    node, narrowed = v.producer, list[DType]()
    while node is not None and isinstance(node.op, (Reshape, Expand, Cast)):
        if isinstance(node.op, Cast) and not v.dtype.is_float:
            narrowed.append(v.dtype)
        v = node.value("x")
        node = v.producer
    if node is None or not node.op.constant:
        return None
    given: Any = node.attributes["value"]
    numbers = np.asarray(given, np.float64).reshape(-1)
    if not numbers.size or (numbers != numbers[0]).any():
        return None
    number = float(numbers[0])
    for dtype in reversed(narrowed):
        if dtype != bool_ and not number.is_integer():
            return None
        number = float(number != 0) if dtype == bool_ else number
    return number


def array_of(v: Value, read: Read | None = None) -> Array | None:
    """The elements of a constant, or of a parameter that `read` gives."""
    if v.is_constant and v.producer is not None:
        return np.asarray(v.producer.attributes["value"], v.dtype.numpy)
    return read(v.name) if read is not None and v.is_param and v.type.encoding is None else None


def computed_array(v: Value, read: Read | None = None) -> Array | None:
    """The elements of what is computed from constants and ranges of fixed sizes, and from parameters that `read` gives.

    None for anything else, without a parameter being read, and where that takes many nodes, products of matrices,
    random numbers or a large array.
    """
    if v.is_param:
        return array_of(v, read)
    order = _made_of_constants(v, params=read is not None)
    if order is None:
        return None
    known: dict[Value, Array] = {}
    for x in order:
        if x.producer is None:
            assert read is not None
            known[x] = read(x.name)
        else:
            operands = [None if a is None else known[a] for a in x.producer.operands]
            known.update(zip(x.producer.outputs, evaluate_node(x.producer, operands, {}), strict=True))
    return known[v]


def _made_of_constants(v: Value, *, params: bool) -> list[Value] | None:
    """A value and what it is made of, each behind its own operands."""
    found: dict[Value, None] = {}
    waiting = [v]
    while waiting:
        x = waiting[-1]
        node, size = x.producer, x.type.elements
        stored = node is None and params and x.is_param and x.type.encoding is None
        cheap = node is not None and not (node.op.heavy or node.op.random)
        if not (stored or cheap) or not isinstance(size, int) or size > LARGEST or len(found) + len(waiting) > MOST:
            return None
        missing = [a for a in ([] if node is None else node.arguments) if a not in found]
        if missing:
            waiting += missing
        else:
            found.setdefault(waiting.pop())
    return list(found)
