"""Rotary positions by meaning: what turns pairs of channels by angles, compared with every known layout."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ...ir import ops
from ...ir.errors import MonographError
from ...ir.graph import Graph, Node, Value
from ...ir.ops.elementwise import Add, Cast, Cos, Div, Mul, Neg, Sin, Sub
from ...ir.ops.linear import Matmul
from ...ir.ops.shape import Concat, Expand, Gather, Iota, Reshape, Slice, TakeAlongAxis, Transpose
from ...ir.types import DimLike, exact_div, f32, i64
from .check import Check
from .constants import computed_array, scalar_of
from .report import Raised, RaisingReport
from .unread import erase_unread
from .views import Unaligned, factor

_MOVES = (Reshape, Transpose, Expand, Cast, Slice)
_CARRY = (Add, Sub, Mul, Neg, Concat, Slice, Reshape, Transpose, Expand, Cast, Gather, TakeAlongAxis)
DEEPEST = 24
"""Nodes above an operand that are looked at."""
LARGEST = 80
"""Nodes of one rotation at most."""


@dataclass(frozen=True)
class Angles:
    """position * frequency: integer positions [B,S] or [S]; the vector of frequencies, and its numbers if constant.

    scale: what sines and cosines are multiplied with.
    """

    product: Node
    positions: Value
    frequencies: Value
    numbers: np.ndarray | None
    scale: float

    def vector(self, width: DimLike) -> Value:
        """Frequencies [R/2] with R at most `width`; a table that holds each of them twice is halved."""
        numbers = self.numbers
        if numbers is None:
            found = self.frequencies
            return found if found.rank == 1 else found.reshape(found.type.elements)
        half = numbers.size // 2
        if isinstance(width, int) and 2 * numbers.size > width and not numbers.size % 2:
            if np.array_equal(numbers[:half], numbers[half:]):
                numbers = numbers[:half]
            elif np.array_equal(numbers[::2], numbers[1::2]):
                numbers = numbers[::2]
        return self.frequencies.graph.constant(tuple(numbers.tolist()), f32)


class Rotations:
    """Finds rotations in one graph."""

    def __init__(self, graph: Graph, check: Check, report: RaisingReport) -> None:
        self.graph, self.check, self.report = graph, check, report
        self._angles: dict[Value, Angles | None] = {}

    def run(self) -> int:
        """Replace rotations by the op. Gives how many."""
        raised = 0
        below = self._below()
        for node in [n for n in below if isinstance(n.op, Concat) and len(n.arguments) > 2]:
            self._joined(node, below)
        below = self._below()
        for node in reversed([n for n in self.graph if n in below]):
            if node.order >= 0 and below[node] == {Sin, Cos} and isinstance(node.op, (Add, Concat, Reshape, Transpose)):
                raised += self._raise_at(node, set(below))
        return raised

    def _joined(self, node: Node, below: dict[Node, set[type]]) -> None:
        """Join the parts that are turned before the others are: both halves of a rotation beside what is not turned."""
        parts: list[Value] = []
        for turned, run in groupby(
            node.arguments, lambda x: below.get(x.producer) == {Sin, Cos} if x.producer else False
        ):
            found = list(run)
            if turned and 1 < len(found) < len(node.arguments):
                with self.graph.at(node):
                    found = [ops.concat(*found, axis=node.attributes["axis"])]
            parts += found
        if len(parts) == len(node.arguments):
            return
        with self.graph.at(node):
            new = ops.concat(*parts, axis=node.attributes["axis"])
        self.graph.replace(node.output, new)
        self.graph.erase(node)

    def _below(self) -> dict[Node, set[type]]:
        """Nodes that sines and cosines reach by arithmetic and rearrangement, and which of both."""
        below: dict[Node, set[type]] = {}
        for node in self.graph:
            if isinstance(node.op, (Sin, Cos)):
                below[node] = {type(node.op)}
            elif isinstance(node.op, _CARRY):
                kinds = [below[x.producer] for x in node.arguments if x.producer in below]
                if kinds:
                    below[node] = set().union(*kinds)
        return below

    def _raise_at(self, node: Node, below: set[Node]) -> bool:
        root = node.output
        if root.rank not in (3, 4, 5) or not root.dtype.is_float:
            return False
        sources, bases = _region(root, below)
        if len(bases) < 2 or not sources:
            return False
        angles = self._angle(bases)
        if angles is None:
            return False
        for x in sources:
            same = x.dtype == root.dtype and x.type.elements == root.type.elements
            if same and self._try(root, x, angles):
                return True
        return False

    def _angle(self, bases: list[Node]) -> Angles | None:
        inner = bases[0].value("x")
        if any(b.value("x") is not inner for b in bases):
            return None
        if inner not in self._angles:
            self._angles[inner] = _angles(bases)
        return self._angles[inner]

    def _try(self, root: Value, x: Value, angles: Angles) -> bool:
        assert root.producer is not None
        # Five axes: pairs of channels are still apart.
        shape = root.shape if root.rank < 5 else (*root.shape[:3], root.shape[3] * root.shape[4])
        for reads, interleaved in ((False, False), (True, True), (True, False)):
            for permutation in _layouts(len(shape)):
                with self.graph.at(root.producer):
                    try:
                        shaped = x if x.shape == shape else x.reshape(*shape)
                        shaped = _apart(shaped) if reads and not interleaved else shaped
                        new, made = _turned(shaped, angles, permutation, interleaved=interleaved)
                        new = new if root.shape == shape else new.reshape(*root.shape)
                    except (MonographError, Unaligned):
                        continue
                wrong = self.check.difference(root, new, {x, angles.positions}, {made, angles.product})
                if wrong is None:
                    width = made.attributes["rotary_dim"]
                    words = ["interleaved"] * reads + [f"{width} channels"] * (width is not None)
                    self.report.raised.append(Raised("rope", root.producer.location, ", ".join(words)))
                    self.graph.replace(root, new)
                    erase_unread(self.graph, root)
                    return True
                erase_unread(self.graph, new)
        return False


def _region(root: Value, below: set[Node]) -> tuple[list[Value], list[Node]]:
    """(values that the root may be a rotation of, nearest first; sines and cosines that it reads)."""
    starts: dict[Value, None] = {}
    bases: dict[Node, None] = {}
    seen, waiting = set[Node](), [root.producer]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node.op, (Sin, Cos)):
            bases[node] = None
            continue
        for x in node.arguments:
            if x.producer in below:
                waiting.append(x.producer)
            elif x.dtype.is_float and scalar_of(x) is None:
                starts[x] = None
        if len(seen) > LARGEST:
            return [], []
    above = [_closure(x) for x in starts]
    common = [x for x in (above[0] if above else ()) if all(x in other for other in above)]
    found = [x for x in common if all(_made_of(s, x, DEEPEST) for s in starts)]
    return sorted(found, key=lambda v: -v.producer.order if v.producer else 1), list(bases)


def _closure(v: Value) -> dict[Value, None]:
    """A value and what it rearranges, negates or joins."""
    seen: dict[Value, None] = {}
    waiting = [v]
    while waiting and len(seen) < DEEPEST:
        x = waiting.pop(0)
        seen.setdefault(x)
        if x.producer is not None and isinstance(x.producer.op, _CARRY):
            waiting += [a for a in x.producer.arguments if a.dtype.is_float and a not in seen]
    return seen


def _made_of(v: Value, x: Value, left: int) -> bool:
    """Whether v is made of x and numbers alone."""
    if v is x or scalar_of(v) is not None:
        return True
    node = v.producer
    if node is None or not left or not isinstance(node.op, _CARRY):
        return False
    return all(_made_of(a, x, left - 1) for a in node.arguments if a.dtype.is_float)


def _angles(bases: list[Node]) -> Angles | None:
    """The factors of the angle that sines and cosines share."""
    v, steps = bases[0].value("x"), 0
    while v.producer is not None and isinstance(v.producer.op, (*_MOVES, Concat, Gather)) and steps < DEEPEST:
        v, steps = v.producer.arguments[0], steps + 1
    node = v.producer
    if node is None or not isinstance(node.op, (Mul, Matmul, Div)):
        return None
    x, y = node.arguments
    for a, b in ((x, y), (y, x)) if not isinstance(node.op, Div) else ((x, y),):
        positions, frequencies = _positions(a), _frequencies(b, inverse=isinstance(node.op, Div))
        if positions is not None and frequencies is not None:
            return Angles(node, positions, *frequencies, _factor_of(bases))
    return None


def _source(v: Value) -> Value:
    """Below rearrangements and casts."""
    while v.producer is not None and isinstance(v.producer.op, _MOVES):
        v = v.producer.arguments[0]
    return v


def _positions(v: Value) -> Value | None:
    """The integers that a factor of an angle rearranges."""
    while v.producer is not None and isinstance(v.producer.op, _MOVES) and v.dtype.is_float:
        v = v.producer.arguments[0]
    if v.dtype.is_float and not (v.producer is not None and isinstance(v.producer.op, Iota)):
        return None
    while v.rank > 2 or (v.producer is not None and isinstance(v.producer.op, (Cast, Expand))):
        if v.producer is None or not isinstance(v.producer.op, _MOVES):
            return None
        v = v.producer.arguments[0]
    return v if 1 <= v.rank <= 2 else None


def _frequencies(v: Value, *, inverse: bool) -> tuple[Value, np.ndarray | None] | None:
    """The vector that a factor of an angle rearranges, and its numbers if it is a constant."""
    source = _source(v)
    size = source.type.elements
    if not isinstance(size, int) or size < 1 or max((d for d in source.shape if isinstance(d, int)), default=1) != size:
        return None
    numbers = computed_array(source)
    if numbers is None:
        return (source, None) if source.is_param and not inverse and size > 1 else None
    numbers = numbers.reshape(-1).astype(np.float64)
    return source, 1.0 / numbers if inverse else numbers


def _factor_of(bases: list[Node]) -> float:
    """The number that sines and cosines are multiplied with."""
    for node in bases:
        for user in node.output.users:
            found = factor(user)
            if found is not None and found[1] > 0:
                return found[1]
    return 1.0


def _layouts(rank: int) -> list[tuple[int, ...]]:
    """Orders of axes that may be [B,S,H,D]; of three axes, [B,S,D]."""
    return [(0, 1, 2, 3), (0, 2, 1, 3), (1, 0, 2, 3)] if rank == 4 else [(0, 1, 2), (1, 0, 2)]


def _apart(x: Value) -> Value:
    """Pairs of neighbours as two halves: the even channels, then the odd ones (DeepSeek turns what it reads so)."""
    *lead, width = x.shape
    pairs = x.reshape(*lead, exact_div(width, 2), 2)
    order = (*range(len(lead)), len(lead) + 1, len(lead))
    return pairs.transpose(*order).reshape(*x.shape)


def _turned(x: Value, a: Angles, order: tuple[int, ...], *, interleaved: bool) -> tuple[Value, Node]:
    """x, turned, in its own layout; and the node that turns. Raises MonographError where shapes do not fit."""
    y = x if order == tuple(range(x.rank)) else x.transpose(*order)
    shape = y.shape
    batch, length, width = shape[0], shape[1], shape[-1]
    y = y if x.rank == 4 else y.reshape(batch, length, 1, width)
    positions = a.positions if a.positions.dtype == i64 else a.positions.cast(i64)
    positions = positions if positions.shape == (batch, length) else ops.expand(positions, shape=(batch, length))
    frequencies = a.vector(width)
    count = frequencies.shape[0]
    if not isinstance(count, int):
        raise Unaligned
    turned = ops.rope(y, positions, frequencies, interleaved=interleaved, rotary_dim=2 * count, scale=a.scale)
    made = turned.producer
    assert made is not None
    turned = turned.reshape(*shape) if x.rank != 4 else turned
    back = tuple(order.index(i) for i in range(len(order)))
    return (turned if order == back and order == tuple(range(x.rank)) else turned.transpose(*back)), made
