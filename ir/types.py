"""Element types, symbolic dimensions and tensor types."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Union

from .dtypes import DType as DType
from .dtypes import bf16 as bf16
from .dtypes import bool_ as bool_
from .dtypes import f16 as f16
from .dtypes import f32 as f32
from .dtypes import f64 as f64
from .dtypes import i8 as i8
from .dtypes import i32 as i32
from .dtypes import i64 as i64
from .dtypes import u8 as u8
from .encodings import Encoding as Encoding
from .errors import MonographError

Monomial = tuple[str, ...]
DimLike = Union[int, "Dim"]
_MOST_TERMS, _MOST_DEGREE = 4096, 64
"""Terms of a product, and symbols of a term: squares of squares would fill any memory."""


class Dim:
    """A polynomial with integer coefficients over named symbols, in normal form: `P + S` equals `S + P`.

    Arithmetic that ends in a constant gives an `int`, so a dimension is either an int or a real expression.
    """

    __slots__ = ("_hash", "terms")
    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)

    @staticmethod
    def symbol(name: str) -> Dim:
        """A dimension known by name only. Raises MonographError for a name that reads as something else in text."""
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name) or name in _DTYPE_NAMES or name.lower() in _RESERVED:
            raise MonographError(f"{name!r} is not a name for a dimension")
        return Dim((((name,), 1),))

    @property
    def symbols(self) -> frozenset[str]:
        return frozenset(s for monomial, _ in self.terms for s in monomial)

    @property
    def name(self) -> str | None:
        """The symbol's name if this is one bare symbol, else None."""
        if len(self.terms) == 1 and len(self.terms[0][0]) == 1 and self.terms[0][1] == 1:
            return self.terms[0][0][0]
        return None

    def substitute(self, values: Mapping[str, DimLike]) -> DimLike:
        """Replace symbols by integers or other dimensions."""
        if not self.symbols & values.keys():
            return self
        total: DimLike = 0
        for monomial, coefficient in self.terms:
            product: DimLike = coefficient
            for s in monomial:
                product = product * values.get(s, Dim((((s,), 1),)))
            total = total + product
        return total

    def __add__(self, other: DimLike) -> DimLike:
        return _normal(_terms(self) + _terms(other))

    def __mul__(self, other: DimLike) -> DimLike:
        theirs = _terms(other)
        if len(self.terms) * len(theirs) > _MOST_TERMS or max(len(a) for a, _ in self.terms) > _MOST_DEGREE:
            raise MonographError(
                f"a dimension would have {len(self.terms)} * {len(theirs)} terms, more than is followed"
            )
        return _normal([(tuple(sorted(a + b)), x * y) for a, x in self.terms for b, y in theirs])

    def __sub__(self, other: DimLike) -> DimLike:
        return self + (-1 * other)

    def __rsub__(self, other: DimLike) -> DimLike:
        return -1 * self + other

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> DimLike:
        return -1 * self

    def __floordiv__(self, other: DimLike) -> DimLike:
        """Exact division; raises MonographError when there is a remainder."""
        by, factor = _leading(other)
        quotient: DimLike = 0
        rest: DimLike = self
        while rest != 0:
            monomial, coefficient = _leading(rest)
            over = Counter(monomial)
            over.subtract(by)
            if factor == 0 or coefficient % factor or min(over.values(), default=0) < 0:
                raise MonographError(f"{self} is not a multiple of {other}")
            step = _normal([(tuple(sorted(over.elements())), coefficient // factor)])
            quotient, rest = quotient + step, rest - step * other
        return quotient

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        text = ""
        for monomial, coefficient in sorted(self.terms, key=lambda t: (t[1] < 0, not t[0], -len(t[0]), t[0])):
            sign = "-" if coefficient < 0 else "+" if text else ""
            factors = [*([str(abs(coefficient))] if abs(coefficient) != 1 or not monomial else []), *monomial]
            text += sign + "*".join(factors)
        return text

    __repr__ = __str__


def _terms(d: DimLike) -> list[tuple[Monomial, int]]:
    return list(d.terms) if isinstance(d, Dim) else [((), d)]


def _leading(d: DimLike) -> tuple[Monomial, int]:
    """The term of highest degree, ties broken by the alphabet: products keep this order, as long division needs."""
    terms = _terms(d)
    names = sorted({s for monomial, _ in terms for s in monomial})
    return max(terms, key=lambda t: (len(t[0]), [t[0].count(s) for s in names]))


def _normal(terms: Iterable[tuple[Monomial, int]]) -> DimLike:
    total: dict[Monomial, int] = {}
    for monomial, coefficient in terms:
        total[monomial] = total.get(monomial, 0) + coefficient
    kept = tuple(sorted((m, c) for m, c in total.items() if c))
    if not kept:
        return 0
    if len(kept) == 1 and kept[0][0] == ():
        return kept[0][1]
    return Dim(kept)


def exact_div(a: DimLike, b: DimLike) -> DimLike:
    """a / b without remainder, for integers and expressions. Raises MonographError otherwise."""
    if isinstance(a, int) and isinstance(b, int):
        if b == 0 or a % b:
            raise MonographError(f"{a} is not a multiple of {b}")
        return a // b
    if isinstance(a, int) and isinstance(b, Dim):
        if a == 0:
            return 0
        raise MonographError(f"{a} is not a multiple of {b}")
    dividend: Any = a  # A Dim, or a dimension that a pattern does not know yet.
    return dividend // b


def never_negative(d: DimLike) -> bool:
    """Whether a dimension is at least 0 whatever its symbols are (they are lengths, so never negative)."""
    return all(coefficient > 0 for _, coefficient in d.terms) if isinstance(d, Dim) else d >= 0


def product(dims: Iterable[DimLike]) -> DimLike:
    total: DimLike = 1
    for d in dims:
        total = total * d
    return total


def cancelled(above: Shape, below: Shape) -> tuple[DimLike, DimLike]:
    """The products of two shapes, without the symbolic dimensions that both have."""
    common = Counter[DimLike](d for d in above if isinstance(d, Dim)) & Counter[DimLike](below)
    counts = Counter[DimLike](above) - common, Counter[DimLike](below) - common
    return product(counts[0].elements()), product(counts[1].elements())


def parse_dim(text: str) -> DimLike:
    """Read a dimension such as `P+S`, `2*S` or `64`. Raises MonographError."""
    total: DimLike = 0
    compact = re.sub(r"\s*([+*-])\s*", r"\1", text.strip())
    pieces = re.findall(r"([+-]?)([^+-]+)", compact)
    if not pieces or "".join(a + b for a, b in pieces) != compact:
        raise MonographError(f"{text!r} is not a dimension")
    for sign, term in pieces:
        value: DimLike = -1 if sign == "-" else 1
        for factor in term.split("*"):
            value = value * (int(factor) if factor.isdecimal() else Dim.symbol(factor))
        total = total + value
    return total


def substitute(shape: Iterable[DimLike], values: Mapping[str, DimLike]) -> Shape:
    return tuple(d.substitute(values) if isinstance(d, Dim) else d for d in shape)


Shape = tuple[DimLike, ...]


@dataclass(frozen=True, slots=True)
class TensorType:
    """dtype and shape of a tensor; a dimension is an int or a `Dim`.

    encoding: how a stored weight is written in fewer bits; dtype and shape are those of the numbers it stands for.
    Raises EncodingError where an encoding does not fit the shape.
    """

    dtype: DType
    shape: Shape
    encoding: Encoding | None = None

    def __post_init__(self) -> None:
        if self.encoding is not None:
            self.encoding.check(self.dtype, self.shape)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> DimLike:
        return product(self.shape)

    @property
    def bytes(self) -> DimLike:
        """Size in memory; two 4-bit elements to a byte, rounded up (term by term where symbolic)."""
        if self.encoding is not None:
            return self.stored.bytes
        n = self.elements
        if self.dtype.bits >= 8:
            return n * (self.dtype.bits // 8)
        return _normal((monomial, -(-coefficient // 2)) for monomial, coefficient in _terms(n))

    @property
    def symbols(self) -> frozenset[str]:
        return frozenset(s for d in self.shape if isinstance(d, Dim) for s in d.symbols)

    @property
    def stored(self) -> TensorType:
        """The type of the array that is held: u8 [lines..., bytes of a line] for an encoded weight, else this type."""
        return self if self.encoding is None else TensorType(u8, self.encoding.stored_shape(self.shape))

    @property
    def decoded(self) -> TensorType:
        """The type of the numbers, without encoding."""
        return self if self.encoding is None else TensorType(self.dtype, self.shape)

    def substitute(self, values: Mapping[str, DimLike]) -> TensorType:
        return TensorType(self.dtype, substitute(self.shape, values), self.encoding)

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape, self.encoding)

    def encoded(self, encoding: Encoding) -> TensorType:
        """This type as `encoding` stores it."""
        return TensorType(self.dtype, self.shape, encoding)

    def __str__(self) -> str:
        plain = f"{self.dtype}[{','.join(map(str, self.shape))}]"
        return plain if self.encoding is None else f"{plain}<{self.encoding}>"


_DTYPE_NAMES = frozenset(d.value for d in DType)
_RESERVED = frozenset({"none", "true", "false", "inf", "infinity", "nan"})


def tensor(dtype: DType, *dims: int | str | Dim) -> TensorType:
    """`tensor(f32, "B", "S", 64)`: a type from integers, expressions and text such as "P+S"."""
    return TensorType(dtype, tuple(parse_dim(d) if isinstance(d, str) else d for d in dims))


def parse_type(text: str) -> TensorType:
    """Read `f32[B,S,64]`, or `f32[48,64]<q4_1>` for an encoded weight. Raises MonographError."""
    found = re.fullmatch(r"\s*(\w+)\[([^\]]*)\](?:<(.*)>)?\s*", text)
    if not found or found[1] not in _DTYPE_NAMES:
        raise MonographError(f"{text.strip()!r} is not a tensor type such as f32[B,S,64]")
    dims = [parse_dim(d) for d in found[2].split(",")] if found[2].strip() else []
    return TensorType(DType(found[1]), tuple(dims), Encoding.parse(found[3]) if found[3] is not None else None)


def broadcast(*shapes: Shape) -> Shape | None:
    """NumPy broadcasting over symbolic shapes; None where two dimensions differ and neither is 1."""
    rank = max((len(s) for s in shapes), default=0)
    result: list[DimLike] = []
    for axis in range(-rank, 0):
        dims = {s[axis] for s in shapes if len(s) >= -axis} - {1}
        if len(dims) > 1:
            return None
        result.append(dims.pop() if dims else 1)
    return tuple(result)
