"""How large numbers can get: bounds on the values of a graph, from facts of its ops and of its weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .types import DimLike, Shape, TensorType

if TYPE_CHECKING:
    from .graph import Graph
    from .value import Node, Value

_TURNS = 3
"""Calls after which a state that is still larger than before is taken to have no bound."""
_SLAB = 1 << 22
"""Numbers of a weight that are squared at a time."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds that hold for every element and every row of a value, whatever the inputs are.

    low, high: of the elements. rows: most Euclidean length along the last axis; columns: along the one before it.
    """

    low: float = -math.inf
    high: float = math.inf
    rows: float = math.inf
    columns: float = math.inf

    @property
    def most(self) -> float:
        """The largest size of an element."""
        return max(abs(self.low), abs(self.high))

    @staticmethod
    def of(low: float, high: float, shape: Shape, rows: float = math.inf, columns: float = math.inf) -> Range:
        """Bounds of a value of a shape: what the elements say about the lengths, and the other way round."""
        low, high = (-math.inf if math.isnan(low) else low), (math.inf if math.isnan(high) else high)
        rows = min(_known(rows), length_of(shape, -1, max(abs(low), abs(high))))
        columns = min(_known(columns), length_of(shape, -2, max(abs(low), abs(high))))
        most = min(rows, columns)
        return Range(max(low, -most), min(high, most), rows, columns)

    @staticmethod
    def within(most: float, shape: Shape, rows: float = math.inf) -> Range:
        """Elements of at most this size, either sign."""
        return Range.of(-most, most, shape, rows)

    def union(self, other: Range) -> Range:
        """Bounds that hold for both."""
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Range(low, high, max(self.rows, other.rows), max(self.columns, other.columns))

    def scaled(self, factor: float) -> Range:
        """Bounds of every element times a number."""
        ends = sorted((_times(self.low, factor), _times(self.high, factor)))
        size = abs(factor)
        return Range(ends[0], ends[1], _times(self.rows, size), _times(self.columns, size))


UNKNOWN = Range()


def _known(length: float) -> float:
    return math.inf if math.isnan(length) else length


def _times(a: float, b: float) -> float:
    """a * b, where nothing times anything is nothing."""
    return 0.0 if a == 0 or b == 0 else a * b


def length_of(shape: Shape, axis: int, most: float) -> float:
    """Most length along an axis of elements of at most a size."""
    size = shape[axis] if len(shape) >= -axis else 1
    return math.sqrt(size) * most if isinstance(size, int) else (0.0 if most == 0 else math.inf)


def spread(given: Range, before: Shape, after: Shape) -> Range:
    """Bounds of a value that is broadcast to another shape."""

    def along(axis: int, length: float) -> float:
        size = before[axis] if len(before) >= -axis else 1
        wider = len(after) >= -axis and size != after[axis]
        return length_of(after, axis, given.most) if wider else length

    return Range(given.low, given.high, along(-1, given.rows), along(-2, given.columns))


def of_array(x: np.ndarray[Any, Any]) -> Range:
    """Bounds of the numbers of a weight."""
    if not x.size:
        return Range(0.0, 0.0, 0.0, 0.0)
    low, high = float(x.min()), float(x.max())
    if x.ndim < 2:
        length = float(np.sqrt(np.square(x.astype(np.float64)).sum()))
        return Range.of(low, high, x.shape, length)
    rows, columns = 0.0, 0.0
    for matrix in x.reshape(-1, *x.shape[-2:]):
        total = np.zeros(matrix.shape[1], np.float64)
        step = max(1, _SLAB // matrix.shape[1])
        for start in range(0, len(matrix), step):
            squares = np.square(matrix[start : start + step].astype(np.float32), dtype=np.float64)
            rows = max(rows, float(squares.sum(1).max()))
            total += squares.sum(0)
        columns = max(columns, float(total.max()))
    return Range.of(low, high, x.shape, math.sqrt(rows), math.sqrt(columns))


def product(x: Range, y: Range) -> tuple[float, float]:
    """Ends of x * y for any elements of both."""
    ends = [_times(a, b) for a in (x.low, x.high) for b in (y.low, y.high)]
    return min(ends), max(ends)


def ranges_of(graph: Graph, given: Mapping[str, Range], params: Mapping[str, Range]) -> dict[Value, Range]:
    """Bounds of every value. given: of inputs, by name; params: of parameters. What is not there is not known.

    What a slot brings is what an earlier call left in it, so its bounds are those that hold once more after a call.
    """
    slots = {s.input: s.output or s.first for s in graph.slots}
    pasts = {k: Range(0.0, 0.0, 0.0, 0.0) for k, after in slots.items() if after in graph.outputs}
    found = _once(graph, {**given, **pasts}, params)
    for turn in itertools.count():
        after = {k: pasts[k].union(found[graph.outputs[slots[k]]]) for k in pasts}
        if after == pasts:
            break
        # What still grows after a few calls has no bound.
        pasts = {k: r if turn < _TURNS or r == pasts[k] else UNKNOWN for k, r in after.items()}
        found = _once(graph, {**given, **pasts}, params)
    return found


def _once(graph: Graph, given: Mapping[str, Range], params: Mapping[str, Range]) -> dict[Value, Range]:
    known: dict[Value, Range] = {v: given.get(k, UNKNOWN) for k, v in graph.inputs.items()}
    known |= {v: params.get(k, UNKNOWN) for k, v in graph.params.items()}
    for node in graph:
        operands = [None if v is None else known[v] for v in node.operands]
        made = node.op.ranges(node, *operands)
        for v, found in zip(node.outputs, made, strict=True):
            known[v] = Range.of(found.low, found.high, v.shape, found.rows, found.columns)
    return known


def of_body(body: Graph, operands: Sequence[Range | None], names: Sequence[str]) -> tuple[Range, ...]:
    """Bounds of the outputs of a composite, from its body."""
    given = {n: r for n, r in zip(names, operands, strict=True) if r is not None}
    found = _once(body, given, {})
    return tuple(found[v] for v in body.outputs.values())


def most_inside(node: Node, given: Sequence[Range | None]) -> float:
    """The largest size of a float inside a composite, from its body."""
    from .op import body_of

    body = body_of(node.op, [None if v is None else v.type for v in node.operands], node.attributes)
    names = node.op.signature.operand_names(len(node.operands))
    found = _once(body, {n: r for n, r in zip(names, given, strict=True) if r is not None}, {})
    return max((r.most for v, r in found.items() if v.dtype.is_float and v.producer is not None), default=0.0)


def unknown(node: Node) -> tuple[Range, ...]:
    """What is known of outputs of which nothing is: that truth values are 0 or 1."""
    return tuple(TRUTH if v.dtype.value == "bool" else UNKNOWN for v in node.outputs)


TRUTH = Range(0.0, 1.0)


def kept_along(length: float, before: DimLike, after: DimLike) -> float:
    """Length of rows of `after` elements that were rows of `before`: pieces of one, or several side by side."""
    if before == after:
        return length
    if not isinstance(before, int) or not isinstance(after, int) or not before or not after:
        return math.inf
    if before % after == 0:
        return length
    return length * math.sqrt(after // before) if after % before == 0 else math.inf


def sized(type: TensorType, low: float, high: float) -> Range:
    """Bounds of elements that an op keeps between two numbers."""
    return Range.of(low, high, type.shape)
