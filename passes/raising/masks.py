"""Masks to structure: additive masks, products of indicators and guards become bools, whatever their spelling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...ir.graph import Graph, Node, Value
from ...ir.interpret import Array
from ...ir.ops.elementwise import Add, Cast, Maximum, Minimum, Mul, Neg, Sub
from ...ir.ops.logic import Equal, Less, LessEqual, LogicalAnd, LogicalNot, LogicalOr, Where
from ...ir.ops.shape import Concat, Expand, Gather, Reshape, Slice, Transpose
from ...ir.types import bool_
from ...ir.value import leaves
from .affine import affine
from .constants import Read, array_of, scalar_of

Truth = Value | bool
"""A bool value of the graph, or one that is the same everywhere."""

NEVER = -1e4
"""What is added to a score that must not count: e**-1e4 is 0 in every type that attention is computed in."""

_VIEWS = (Reshape, Transpose, Expand, Slice, Gather, Concat)


def negated(x: Truth) -> Truth:
    """Not x."""
    if isinstance(x, bool):
        return not x
    node = x.producer
    return node.value("x") if node is not None and isinstance(node.op, LogicalNot) else ~x


def both(x: Truth, y: Truth) -> Truth:
    """x and y."""
    if isinstance(x, bool):
        return y if x else False
    if isinstance(y, bool):
        return x if y else False
    return x if x is y else x & y


def either(x: Truth, y: Truth) -> Truth:
    """x or y."""
    if isinstance(x, bool):
        return True if x else y
    if isinstance(y, bool):
        return True if y else x
    return x if x is y else x | y


class Masks:
    """Reads masks of one graph; what it finds for a value is kept. New nodes go before `root`."""

    def __init__(self, graph: Graph, read: Read | None = None) -> None:
        self.graph, self.read = graph, read
        self._kept: dict[tuple[str, Value], Truth | None] = {}

    def keep(self, v: Value) -> Truth | None:
        """Where an additive mask lets a score be: it is 0 there and at most NEVER elsewhere. None: it is no mask."""
        return self._remembered("keep", v, self._keep)

    def taken(self, v: Value) -> Truth | None:
        """As `keep`, of a mask that is taken off."""
        return self._remembered("taken", v, lambda x: self._scaled(x, -1.0))

    def indicator(self, v: Value) -> Truth | None:
        """Where a value of zeros and ones is one. None: it may be something else."""
        return self._remembered("indicator", v, self._indicator)

    def truth(self, v: Value) -> Truth:
        """A bool in terms of comparisons, `and`, `or` and `not` alone, as far as that is possible."""
        found = self._remembered("truth", v, self._truth)
        return v if found is None else found

    def _remembered(self, kind: str, v: Value, find: Callable[[Value], Truth | None]) -> Truth | None:
        key = kind, v
        if key not in self._kept:
            self._kept[key] = find(v)
        return self._kept[key]

    # -- additive ------------------------------------------------------------------------------------------------

    def _keep(self, v: Value) -> Truth | None:
        numbers = self._numbers(v)
        if numbers is not None:
            zero, never = numbers == 0, numbers <= NEVER
            return self._table(zero) if (zero | never).all() else None
        node = v.producer
        if node is None or not v.dtype.is_float:
            return None
        op = node.op
        if isinstance(op, Cast):
            return self.keep(node.value("x"))
        if isinstance(op, Where):
            return self._chosen(node)
        if isinstance(op, (Add, Minimum)):
            return self._all(node, self.keep)
        if isinstance(op, Maximum):
            floor = [x for x in node.arguments if (n := scalar_of(x)) is not None and n <= NEVER]
            carried = [x for x in node.arguments if x not in floor]
            return self.keep(carried[0]) if len(floor) == len(carried) == 1 else None
        if isinstance(op, Neg):
            return self._scaled(node.value("x"), -1.0)
        if isinstance(op, Mul):
            return self._product(node)
        return self._moved(node, self.keep) if isinstance(op, _VIEWS) else None

    def _product(self, node: Node) -> Truth | None:
        x, y = node.arguments
        for a, b in ((x, y), (y, x)):
            number = scalar_of(b)
            if number is not None and (found := self._scaled(a, number)) is not None:
                return found
            masked = self.keep(a)
            if masked is not None and (chosen := self.indicator(b)) is not None:
                return either(negated(chosen), masked)
        return None

    def _scaled(self, x: Value, number: float) -> Truth | None:
        """x * number, where x is an indicator, an indicator less one, or such a product itself."""
        if number <= NEVER and (found := self.indicator(x)) is not None:
            return negated(found)
        node = x.producer
        if node is None:
            return None
        if number >= -NEVER and isinstance(node.op, (Sub, Add)):
            one = scalar_of(node.arguments[1])
            if one == (1.0 if isinstance(node.op, Sub) else -1.0):
                return self.indicator(node.arguments[0])
        if isinstance(node.op, (Reshape, Expand, Transpose, Slice, Cast)):
            inner = self._scaled(node.value("x"), number)
            return inner if inner is None or isinstance(inner, bool) else self._again(node, [inner])
        if isinstance(node.op, Mul) and (inner_number := scalar_of(node.arguments[1])) is not None:
            return self._scaled(node.arguments[0], number * inner_number)
        return None

    def _chosen(self, node: Node) -> Truth | None:
        condition, x, y = (node.value(name) for name in ("condition", "x", "y"))
        c = self.truth(condition)
        kept = [self.keep(x), self.keep(y)]
        for i, v in enumerate((x, y)):
            if kept[i] is None and self._zero_where(v, condition, when=i == 0):
                kept[i] = True
        a, b = kept
        if a is None or b is None:
            return None
        return either(both(c, a), both(negated(c), b))

    def _zero_where(self, v: Value, condition: Value, *, when: bool) -> bool:
        """Whether v is 0 wherever the condition is `when`: the condition is v as a bool, or v != 0."""
        node = condition.producer
        while node is not None and isinstance(node.op, LogicalNot):
            when, node = not when, node.value("x").producer
        if node is None:
            return False
        if isinstance(node.op, Cast):
            return not when and node.value("x") is v
        return isinstance(node.op, Equal) and when and node.arguments[0] is v and scalar_of(node.arguments[1]) == 0

    # -- zeros and ones ------------------------------------------------------------------------------------------

    def _indicator(self, v: Value) -> Truth | None:
        numbers = self._numbers(v)
        if numbers is not None:
            return self._table(numbers == 1) if np.isin(numbers, (0, 1)).all() else None
        if v.dtype == bool_:
            return self.truth(v)
        node = v.producer
        if node is None:
            # Masks that a caller brings as integers hold zeros and ones; other integers may hold anything.
            integer = not v.dtype.is_float and not v.is_param and v.rank >= 2
            return ~v.eq(0) if integer and "mask" in v.name.lower() else None
        op = node.op
        if isinstance(op, Cast):
            return self.indicator(node.value("x"))
        if isinstance(op, Sub):
            x, y = node.arguments
            return self._negated(y) if scalar_of(x) == 1 else None
        if isinstance(op, Add):
            x, y = node.arguments  # 1 + (-x)
            minus = x.producer
            opposite = minus is not None and isinstance(minus.op, Neg) and scalar_of(y) == 1
            return self._negated(minus.value("x")) if opposite and minus is not None else None
        if isinstance(op, (Mul, Minimum)):
            return self._all(node, self.indicator)
        if isinstance(op, Maximum):
            x, y = (self.indicator(a) for a in node.arguments)
            return None if x is None or y is None else either(x, y)
        if isinstance(op, Where):
            condition, *branches = node.arguments
            c = self.truth(condition)
            x, y = (self.indicator(a) for a in branches)
            return None if x is None or y is None else either(both(c, x), both(negated(c), y))
        return self._moved(node, self.indicator) if isinstance(op, _VIEWS) else None

    def _negated(self, v: Value) -> Truth | None:
        found = self.indicator(v)
        return None if found is None else negated(found)

    # -- bools -------------------------------------------------------------------------------------------------

    def _truth(self, v: Value) -> Truth | None:
        numbers = self._numbers(v)
        if numbers is not None:
            return self._table(numbers)
        node = v.producer
        if node is None:
            return None
        op = node.op
        if isinstance(op, Cast):
            x = node.value("x")
            return self.truth(x) if x.dtype == bool_ else self.indicator(x)
        if isinstance(op, LogicalNot):
            x = node.value("x")
            differs = self._chosen_number(x.producer, equal=False) if x.producer is not None else None
            return negated(self.truth(x)) if differs is None else differs
        if isinstance(op, (LogicalAnd, LogicalOr)):
            x, y = (self.truth(a) for a in node.arguments)
            return both(x, y) if isinstance(op, LogicalAnd) else either(x, y)
        if isinstance(op, Where):
            c, x, y = (self.truth(a) for a in node.arguments)
            return either(both(c, x), both(negated(c), y))
        if isinstance(op, Equal):
            return self._compared(node)
        if isinstance(op, (Less, LessEqual)):
            return self._threshold(node)
        return self._moved(node, lambda x: self.truth(x)) if isinstance(op, _VIEWS) else None

    def _compared(self, node: Node) -> Truth | None:
        """x == 0 or x == 1, of an indicator, an additive mask, or the sum of both; x == any number, of chosen ones."""
        chosen = self._chosen_number(node, equal=True)
        if chosen is not None:
            return chosen
        for x, y in (node.arguments, node.arguments[::-1]):
            number = scalar_of(y)
            if number not in (0.0, 1.0, False, True):
                continue
            if number == 0:
                return self._zero(x)
            found = self.indicator(x)
            if found is not None and not assumed(x):
                return found
        return None

    def _chosen_number(self, node: Node, *, equal: bool) -> Truth | None:
        """x == number, or x != number, where conditions choose x among numbers."""
        if not isinstance(node.op, Equal):
            return None
        pairs = ((x, scalar_of(y)) for x, y in (node.arguments, node.arguments[::-1]))
        return next((self._is(x, number, equal=equal) for x, number in pairs if number is not None), None)

    def _is(self, v: Value, number: float, *, equal: bool) -> Truth | None:
        known, node = scalar_of(v), v.producer
        if known is not None:
            return (known == number) == equal
        if node is None:
            return None
        if isinstance(node.op, Where):
            c, (x, y) = self.truth(node.arguments[0]), (self._is(a, number, equal=equal) for a in node.arguments[1:])
            return None if x is None or y is None else either(both(c, x), both(negated(c), y))
        return self._moved(node, lambda x: self._is(x, number, equal=equal)) if isinstance(node.op, _VIEWS) else None

    def _zero(self, v: Value) -> Truth | None:
        """Where a value is 0: an additive mask, an indicator, or a sum in which neither makes up for the other."""
        found = self.keep(v)
        if found is not None:
            return found
        chosen = self.indicator(v)
        if chosen is not None and (not assumed(v) or _brought(v)):
            return negated(chosen)
        node = v.producer
        if node is None or not isinstance(node.op, Add):
            return None
        x, y = (self._zero(a) for a in node.arguments)
        return None if x is None or y is None else both(x, y)

    def _threshold(self, node: Node) -> Truth | None:
        """An indicator compared with a number between 0 and 1: 0 < x, x < 1, x > 0.5."""
        strict = isinstance(node.op, Less)
        x, y = node.arguments
        for a, b, upper in ((x, y, True), (y, x, False)):
            number = scalar_of(b)
            if number is None or affine_like(a) or assumed(a) or (found := self.indicator(a)) is None:
                continue
            zero, one = ((v < number if strict else v <= number) if upper else (number < v if strict else number <= v)
                         for v in (0, 1))  # fmt: skip
            return either(both(found, one), both(negated(found), zero))
        return None

    # -- shared --------------------------------------------------------------------------------------------------

    def _numbers(self, v: Value) -> Array | None:
        number = scalar_of(v)
        if number is not None:
            return np.asarray(number != 0 if v.dtype == bool_ else number)
        return array_of(v, self.read if v.rank <= 4 else None)

    def _table(self, table: Array) -> Truth:
        if table.all():
            return True
        return logic_table(self.graph, table) if table.any() else False

    def _all(self, node: Node, find: Callable[[Value], Truth | None]) -> Truth | None:
        x, y = (find(a) for a in node.arguments)
        return None if x is None or y is None else both(x, y)

    def _moved(self, node: Node, find: Callable[[Value], Truth | None]) -> Truth | None:
        """The same rearrangement of what is found for the operands."""
        moved = node.arguments if isinstance(node.op, Concat) else node.arguments[:1]
        found = [find(v) for v in moved]
        if any(f is None for f in found):
            return None
        first = found[0]
        if isinstance(first, bool) and all(isinstance(f, bool) and f == first for f in found):
            return first
        values = [self._everywhere(f, v) for f, v in zip(found, moved, strict=True)]
        return self._again(node, values)

    def _everywhere(self, found: Truth | None, v: Value) -> Value:
        """As a value of the shape of v."""
        assert found is not None
        x = self.graph.constant(found, bool_) if isinstance(found, bool) else found
        return x if x.shape == v.shape else self.graph.apply("expand", (x,), {"shape": v.shape})

    def _again(self, node: Node, values: list[Value]) -> Value:
        shaped = [self._everywhere(x, v) for x, v in zip(values, node.arguments, strict=False)]
        rest = node.operands[len(shaped) :]
        attributes: dict[str, Any] = node.attributes
        return self.graph.add(node.op, [*shaped, *rest], attributes)[0]


def affine_like(v: Value) -> bool:
    """Whether a value is made of ranges: a comparison of it is one of positions."""
    return affine(v) is not None


def assumed(v: Value) -> bool:
    """Whether a value holds zeros and ones only if an integer input does, which a mask does and ids do not."""
    return any(x.dtype != bool_ and not x.is_param for x in leaves(v))


def _brought(v: Value) -> bool:
    """Whether a value is an input, rearranged and converted: it is 0 where that is."""
    while v.producer is not None and isinstance(v.producer.op, (Cast, *_VIEWS)):
        v = v.producer.arguments[0]
    return v.producer is None


def logic_table(graph: Graph, table: Array) -> Value:
    """A constant of bools."""
    return graph.constant(_nested(table.tolist()), bool_)


def _nested(value: Any) -> Any:
    return tuple(_nested(v) for v in value) if isinstance(value, list) else value  # pyright: ignore
