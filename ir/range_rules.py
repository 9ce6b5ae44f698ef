"""Rules that ops share: bounds of an output from those of the operands, each the `ranges` of an op's class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .ranges import Range, kept_along, of_array, product, sized, spread
from .types import bool_

if TYPE_CHECKING:
    from .op import Op
    from .value import Node


def known(given: Sequence[Range | None]) -> list[Range]:
    """The bounds of the operands that are there."""
    return [r for r in given if r is not None]


def both(node: Node, given: Sequence[Range | None]) -> list[Range]:
    """The bounds of operands, broadcast to the output."""
    pairs = zip(known(given), node.arguments, strict=True)
    return [spread(r, v.shape, node.output.shape) for r, v in pairs]


def kept(op: Any, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """Between two numbers that the op knows."""
    return (sized(node.output.type, *(op.kept or (-math.inf, math.inf))),)


def added(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """x + y."""
    x, y = both(node, given)
    return (Range(x.low + y.low, x.high + y.high, x.rows + y.rows, x.columns + y.columns),)


def subtracted(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """x - y."""
    x, y = both(node, given)
    return (Range(x.low - y.high, x.high - y.low, x.rows + y.rows, x.columns + y.columns),)


def multiplied(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """x * y; a square is not negative."""
    x, y = both(node, given)
    if node.value("x") is node.value("y"):
        return (Range(0.0, x.most**2),)
    low, high = product(x, y)
    rows, columns = (min(x.most * b, a * y.most) for a, b in ((x.rows, y.rows), (x.columns, y.columns)))
    return (Range(low, high, rows, columns),)


def divided(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """x / y; shares of a sum are at most 1, and what is divided by what may be 0 has no bound."""
    x, y = both(node, given)
    a, b = node.arguments
    if b.producer is not None and b.producer.op.adds_up and b.producer.arguments[0] is a and x.low >= 0:
        return (Range(0.0, 1.0),)
    if y.low <= 0 <= y.high:
        return (Range(),)
    least = min(abs(y.low), abs(y.high))
    return (Range(-x.most / least, x.most / least, x.rows / least, x.columns / least),)


def larger(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """The larger of two."""
    x, y = both(node, given)
    return (Range(max(x.low, y.low), max(x.high, y.high), x.rows + y.rows, x.columns + y.columns),)


def smaller(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """The smaller of two."""
    x, y = both(node, given)
    return (Range(min(x.low, y.low), min(x.high, y.high), x.rows + y.rows, x.columns + y.columns),)


def negated(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """-x."""
    (x,) = known(given)
    return (x.scaled(-1.0),)


def sizes(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """|x|."""
    (x,) = known(given)
    return (Range(0.0, x.most, x.rows, x.columns),)


def exponentials(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """e ** x."""
    (x,) = known(given)
    return (Range(0.0, math.exp(x.high) if x.high < 88 else math.inf),)


def roots(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """Square roots."""
    (x,) = known(given)
    return (Range(0.0, math.sqrt(max(x.high, 0.0))),)


def floors(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """Whole numbers at most 1 below."""
    (x,) = known(given)
    return (Range(x.low - 1.0, x.high),)


def rounded(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """Whole numbers less than 1 away."""
    (x,) = known(given)
    return (Range(x.low - 1.0, x.high + 1.0),)


def inverse_roots(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """1 / sqrt(x)."""
    (x,) = known(given)
    return (Range(0.0, 1.0 / math.sqrt(x.low) if x.low > 0 else math.inf),)


def cast(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """The same numbers; 0 or 1 as truth values."""
    (x,) = known(given)
    return (Range(0.0, 1.0) if node.output.dtype == bool_ else x,)


def written(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """The numbers of a constant."""
    return (of_array(np.asarray(node.attributes["value"], np.float64)),)


def regrouped(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """A row that is cut into pieces bounds each of them, and so do pieces the row that they make."""
    (x,) = known(given)
    before, after = node.value("x").shape, node.output.shape
    rows = kept_along(x.rows, before[-1] if before else 1, after[-1] if after else 1)
    columns = x.columns if before[-2:] == after[-2:] else math.inf
    return (replace(x, rows=rows, columns=columns),)


def turned(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """Rows and columns at their new places."""
    (x,) = known(given)
    order = node.attributes["permutation"]
    lengths = {len(order) - 1: x.rows, len(order) - 2: x.columns}
    rows, columns = (lengths.get(order[i], math.inf) if len(order) >= -i else math.inf for i in (-1, -2))
    return (replace(x, rows=rows, columns=columns),)


def expanded(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """The same numbers, more of them."""
    (x,) = known(given)
    return (spread(x, node.value("x").shape, node.output.shape),)


def joined(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """Rows of one operand or another; joined end to end they are as long as the hypotenuse of their lengths."""
    parts = known(given)
    axis = node.attributes["axis"]
    rows, columns = (
        math.hypot(*lengths) if axis == at else max(lengths)
        for at, lengths in ((-1, [r.rows for r in parts]), (-2, [r.columns for r in parts]))
    )
    low, high = min(r.low for r in parts), max(r.high for r in parts)
    return (Range(low, high, rows, columns),)


def parts(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """A part of the elements."""
    return tuple(known(given))


def rows(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """Along an axis that is not the last, rows are taken whole."""
    x = given[0]
    assert x is not None
    return (replace(x, rows=x.rows if node.attributes["axis"] != -1 else math.inf, columns=math.inf),)


def taken(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """Elements at other places."""
    assert given[0] is not None
    return (replace(given[0], rows=math.inf, columns=math.inf),)


def chosen(op: Op, node: Node, *given: Range | None) -> tuple[Range, ...]:
    """One or the other."""
    _, x, y = both(node, given)
    return (x.union(y),)
