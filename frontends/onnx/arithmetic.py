"""Arithmetic of sizes: what is sure whatever their symbols are. All raise Unmapped for what is not."""

from __future__ import annotations

from math import gcd

from ...ir.errors import MonographError
from ...ir.types import Dim, DimLike, exact_div, never_negative, product
from .equal import Sizes, least
from .errors import Unmapped

FACTORS = 8
"""Largest power of a size."""


def divided(sizes: Sizes, a: DimLike, b: DimLike) -> DimLike:
    """As integers are divided in ONNX: towards 0."""
    if isinstance(a, int) and isinstance(b, int):
        if b == 0:
            raise Unmapped("division by 0")
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    sizes.divided(a, b)
    try:
        return exact_div(a, b)
    except MonographError as e:
        found = sizes.seen(a, b) if isinstance(b, int) and b > 0 else None
        if found is None and isinstance(b, int) and never_negative(a):
            found = sizes.quotient(a, b)
        if found is None:
            raise Unmapped(str(e)) from None
        return found


def power(a: DimLike, b: DimLike) -> DimLike:
    """A size times itself, `b` factors in all."""
    if not isinstance(b, int) or not 0 <= b <= FACTORS:
        raise Unmapped(f"{b} factors")
    return product([a] * b)


def left_over(sizes: Sizes, a: DimLike, b: DimLike) -> DimLike:
    """The rest of a division, with the sign of the second operand."""
    if isinstance(a, int) and isinstance(b, int) and b:
        return a % b
    if isinstance(a, int) and isinstance(b, Dim) and -least(b) <= a < least(b):
        return a if a >= 0 else a + b
    found = sizes.quotient(a, b) if isinstance(b, int) else None
    return a - (divided(sizes, a, b) if found is None else found) * b


def _never_below(d: DimLike, number: DimLike) -> bool:
    """Whether a size is at least a number: where a product of sizes is 0, what has this size has no elements."""
    return isinstance(d, Dim) and len(d.terms) == 1 and isinstance(number, int) and number <= 1 and never_negative(d)


def extreme(sizes: Sizes, a: DimLike, b: DimLike, *, largest: bool) -> DimLike:
    """The larger or the smaller of two, where that is sure whatever the symbols are, or shows later."""
    for x, y in ((a, b), (b, a)):
        if never_negative(x - y) or _never_below(x, y):
            return x if largest else y
    found = sizes.extreme("larger" if largest else "smaller", a, b)
    if found is None:
        raise Unmapped(f"whether {a} or {b} is larger is not known")
    return found


def size_of(d: DimLike) -> DimLike:
    """Without its sign."""
    if isinstance(d, Dim) and not never_negative(d):
        raise Unmapped(f"whether {d} is negative is not known")
    return abs(d) if isinstance(d, int) else d


def sign_of(d: DimLike) -> DimLike:
    """Of a product of sizes it is 1: where it is 0, what has this size has no elements."""
    if never_negative(d - 1):
        return 1
    if isinstance(d, Dim) and (len(d.terms) > 1 or not never_negative(d)):
        raise Unmapped(f"the sign of {d} is not known")
    return (d > 0) - (d < 0) if isinstance(d, int) else 1


def never_equal(gap: DimLike) -> bool:
    """Whether a difference is surely not 0: by its sign, or as what its symbols are multiplied by leaves a rest."""
    if not isinstance(gap, Dim):
        return gap != 0
    rest = sum(c for symbols, c in gap.terms if not symbols)
    by = gcd(*(c for symbols, c in gap.terms if symbols))
    return never_negative(gap - 1) or never_negative(-1 * gap - 1) or rest % by != 0
