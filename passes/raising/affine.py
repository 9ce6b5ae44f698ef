"""Integer values that are affine in their indices: a range, a shifted range, a comparison of two. Exact, by symbols."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir.graph import Node, Value
from ...ir.interpret import Array
from ...ir.ops.elementwise import Add, Cast, Mul, Neg, Sub
from ...ir.ops.logic import Less, LessEqual, LogicalNot
from ...ir.ops.reduce import Cumsum
from ...ir.ops.shape import Concat, Expand, Gather, Iota, Reshape, Slice, Transpose
from ...ir.types import Dim, DimLike, Shape, never_negative
from .constants import Read, array_of


@dataclass(frozen=True)
class Affine:
    """sum of slopes[i] * index i, plus offset; one slope for each axis."""

    slopes: tuple[int, ...]
    offset: DimLike

    def times(self, number: int) -> Affine:
        return Affine(tuple(s * number for s in self.slopes), self.offset * number)

    def plus(self, other: Affine) -> Affine:
        rank = max(len(self.slopes), len(other.slopes))
        a, b = ((0,) * (rank - len(x.slopes)) + x.slopes for x in (self, other))
        return Affine(tuple(x + y for x, y in zip(a, b, strict=True)), self.offset + other.offset)


def affine(v: Value, read: Read | None = None) -> Affine | None:
    """The affine form of a value, if it has one."""
    node = v.producer
    if node is None or node.op.constant:
        numbers = array_of(v, read) if v.rank <= 1 else None
        return None if numbers is None else _progression(numbers)
    return _of_node(node, read)


def _progression(numbers: Array) -> Affine | None:
    if numbers.size == 0 or numbers.dtype.kind not in "iuf" or not np.array_equal(numbers, np.round(numbers)):
        return None
    if numbers.dtype.kind == "f" and np.abs(numbers).max() >= 1 << 53:
        return None  # Far from all positions, and not every whole number is one of its type.
    line = numbers.reshape(-1).astype(np.int64)
    step = int(line[1] - line[0]) if line.size > 1 else 0
    if not np.array_equal(line, line[0] + step * np.arange(line.size)):
        return None
    return Affine((step,) * numbers.ndim, int(line[0]))


def _of_node(node: Node, read: Read | None) -> Affine | None:
    op = node.op
    if isinstance(op, Iota):
        return Affine((1,), node.attributes["start"])
    if isinstance(op, Gather):
        return _gathered(node, read)
    if isinstance(op, (Add, Sub, Mul)):
        x, y = (affine(v, read) for v in node.arguments)
        return None if x is None or y is None else _combined(op, x, y)
    if isinstance(op, Concat):
        return _joined(node, read)
    if not isinstance(op, (Cast, Neg, Reshape, Transpose, Expand, Slice, Cumsum)):
        return None
    x = affine(node.arguments[0], read)
    if x is None or isinstance(op, Cast):
        keeps = node.output.dtype.bits >= 32 and node.arguments[0].dtype.bits >= 32
        return x if keeps else None
    return x.times(-1) if isinstance(op, Neg) else _moved(node, x)


def _combined(op: Add | Sub | Mul, x: Affine, y: Affine) -> Affine | None:
    if isinstance(op, Add):
        return x.plus(y)
    if isinstance(op, Sub):
        return x.plus(y.times(-1))
    for a, b in ((x, y), (y, x)):
        if not any(b.slopes) and isinstance(b.offset, int):
            return a.times(b.offset).plus(Affine((0,) * len(b.slopes), 0))
    return None


def _joined(node: Node, read: Read | None) -> Affine | None:
    """Parts of which each goes on where the one before it ends."""
    at: int = node.attributes["axis"] % node.output.rank
    parts = [affine(v, read) for v in node.arguments]
    first = parts[0]
    if first is None or len(first.slopes) != node.output.rank:
        return None
    begin = first.offset
    for part, v in zip(parts, node.arguments, strict=True):
        if part is None or part.slopes != first.slopes or part.offset != begin:
            return None
        begin = begin + first.slopes[at] * v.shape[at]
    return first


def _moved(node: Node, x: Affine) -> Affine | None:
    before, after = node.arguments[0].shape, node.output.shape
    if isinstance(node.op, Transpose):
        permutation: tuple[int, ...] = node.attributes["permutation"]
        return Affine(tuple(x.slopes[i] for i in permutation), x.offset)
    if isinstance(node.op, Reshape):
        return _reshaped(x, before, after)
    if isinstance(node.op, Slice):
        start: DimLike = node.attributes["start"]
        axis: int = node.attributes["axis"]
        return Affine(x.slopes, x.offset + start * x.slopes[axis])
    if isinstance(node.op, Cumsum):
        if any(x.slopes) or not isinstance(x.offset, int):
            return None
        at = node.attributes["axis"] % len(x.slopes)
        return Affine(tuple(x.offset if i == at else 0 for i in range(len(x.slopes))), x.offset)
    added = len(after) - len(before)
    kept = (0 if old == 1 else s for s, old in zip(x.slopes, before, strict=True))
    return Affine((*(0,) * added, *kept), x.offset)


def _reshaped(x: Affine, before: Shape, after: Shape) -> Affine | None:
    """Through a reshape that only adds or removes axes of one element."""
    slopes = [s for s, d in zip(x.slopes, before, strict=True) if d != 1]
    if not any(slopes):
        return Affine((0,) * len(after), x.offset)
    if [d for d in before if d != 1] != [d for d in after if d != 1]:
        return None
    return Affine(tuple(0 if d == 1 else slopes.pop(0) for d in after), x.offset)


def _gathered(node: Node, read: Read | None) -> Affine | None:
    """A range indexed by a range: x[i] of a vector x."""
    x, i = affine(node.value("x"), read), affine(node.value("indices"), read)
    if x is None or i is None or len(x.slopes) != 1:
        return None
    return i.times(x.slopes[0]).plus(Affine((0,) * len(i.slopes), x.offset))


@dataclass(frozen=True)
class Band:
    """What a bool says of query i of S at position T - S + i and key j of T, exactly.

    causal: j is at most that position. window: at least one of the newest so many. Neither: always true.
    """

    causal: bool = False
    window: int | None = None


def band(v: Value, rows: DimLike, keys: DimLike, read: Read | None = None) -> Band | None:
    """The band that bool `v` [..,S,T] is, if it depends on nothing but the last two indices and is one."""
    difference = _at_most_zero(v, read)
    if difference is None:
        return None
    rank = max(2, len(difference.slopes))
    slopes = (0,) * (rank - len(difference.slopes)) + difference.slopes
    # Where an axis has one element its slope counts nothing.
    sizes = (1,) * (rank - v.rank) + v.shape
    slopes = tuple(0 if d == 1 else s for s, d in zip(slopes, sizes, strict=True))
    if any(slopes[:-2]):
        return None
    i, j = slopes[-2:]
    if _never_positive(i, j, difference.offset, rows, keys):
        return Band()
    # An axis of one query has no slope in a value, but its position is known.
    if (i, j) == (-1, 1) or ((i, j) == (0, 1) and rows == 1):
        return Band(causal=True) if difference.offset == rows - keys else None
    if (i, j) == (1, -1) or ((i, j) == (0, -1) and rows == 1):
        window = keys - rows + 1 - difference.offset
        return Band(window=window) if isinstance(window, int) and window > 0 else None
    return None


def _never_positive(i: int, j: int, offset: DimLike, rows: DimLike, keys: DimLike) -> bool:
    most: DimLike = offset
    for slope, size in ((i, rows), (j, keys)):
        most = most + slope * (size - 1) if slope > 0 else most
    bound = -1 * most
    return never_negative(bound) if isinstance(bound, Dim) else bound >= 0


def _at_most_zero(v: Value, read: Read | None) -> Affine | None:
    """An affine form that is at most 0 exactly where bool `v` is true."""
    node = v.producer
    if node is None or node.op.constant:
        return _of_table(v, read)
    if isinstance(node.op, LogicalNot):
        inner = _at_most_zero(node.value("x"), read)
        return None if inner is None else inner.times(-1).plus(Affine((0,), 1))
    if isinstance(node.op, (Less, LessEqual)):
        x, y = (affine(a, read) for a in node.arguments)
        if x is None or y is None:
            return None
        found = x.plus(y.times(-1))
        return found.plus(Affine((0,), 1)) if isinstance(node.op, Less) else found
    if isinstance(node.op, (Reshape, Transpose, Expand, Slice)):
        inner = _at_most_zero(node.value("x"), read)
        rank = node.value("x").rank
        if inner is None or len(inner.slopes) > rank:
            return None
        return _moved(node, Affine((0,) * (rank - len(inner.slopes)) + inner.slopes, inner.offset))
    return None


def _of_table(v: Value, read: Read | None) -> Affine | None:
    """Of a written-out triangle [..,n,m]: true up to a diagonal, or from one on."""
    shape = v.shape
    if v.rank < 2 or any(d != 1 for d in shape[:-2]):
        return None
    table = array_of(v, read)
    if table is None or table.dtype != np.bool_:
        return None
    matrix, zeros = table.reshape(table.shape[-2:]), (0,) * (v.rank - 2)
    rows, columns = matrix.shape
    if matrix.all():
        return Affine((*zeros, 0, 0), 0)
    upto, start = int(matrix[0].sum()) - 1, columns - int(matrix[0].sum())
    if rows > 1 and columns > 1 and np.array_equal(matrix, np.tri(rows, columns, upto, dtype=np.bool_)):
        return Affine((*zeros, -1, 1), -upto)
    if rows > 1 and columns > 1 and np.array_equal(matrix, ~np.tri(rows, columns, start - 1, dtype=np.bool_)):
        return Affine((*zeros, 1, -1), start)
    return None
