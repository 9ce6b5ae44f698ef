"""Numbers that are known before a graph runs: constants, and what moves or converts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...ir.graph import Value
from ...ir.interpret import Array
from ...ir.ops.elementwise import Cast
from ...ir.ops.shape import Expand, Reshape
from ...ir.types import DType, bool_

Read = Callable[[str], Array]
"""The array of a parameter, by its path."""


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
