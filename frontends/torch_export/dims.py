"""Sizes of a program (integers and sympy expressions) as dimensions of the IR."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from ...ir.errors import MonographError
from ...ir.types import Dim, DimLike, exact_div
from .errors import UnknownFormError


class Dims:
    """One symbol of the IR for each of the program. names: those that differ from what PyTorch calls them.

    least: the smallest value of each symbol, by its name in PyTorch. shown: the symbols that sizes of inputs have
    (None: any).
    """

    def __init__(
        self, names: Mapping[str, str], least: Mapping[str, int], shown: Collection[str] | None = None
    ) -> None:
        self.names, self.shown = dict(names), shown
        self.least = {self.name(k): n for k, n in least.items()}

    def name(self, symbol: str) -> str:
        """What the IR calls a symbol of PyTorch."""
        return self.names.get(symbol, f"{symbol[0]}_{symbol[1:]}" if symbol in ("u4", "u8") else symbol)

    def of(self, size: Any) -> DimLike:
        """A size, an int or a SymInt. Raises UnknownFormError for one that is no polynomial of sizes of inputs."""
        return int(size) if isinstance(size, int) else self._expression(size.node.expr)

    def shape(self, sizes: Any) -> tuple[DimLike, ...]:
        """All sizes of a tensor."""
        return tuple(self.of(n) for n in sizes)

    def _expression(self, e: Any) -> DimLike:
        if e.is_Integer:
            return int(e)
        if e.is_Symbol:
            if self.shown is not None and str(e) not in self.shown:
                raise UnknownFormError(f"{e} is no size of an input: it depends on the numbers in a tensor")
            return Dim.symbol(self.name(str(e)))
        rule = _RULES.get(type(e).__name__)
        if rule is None:
            raise UnknownFormError(f"the size {e} is not made of sums and products of sizes of inputs")
        try:
            return rule(self, *(self._expression(part) for part in e.args))
        except MonographError as cause:
            raise UnknownFormError(f"the size {e} does not follow from sums and products: {cause.what}") from None

    def sum(self, *parts: DimLike) -> DimLike:
        total: DimLike = 0
        for d in parts:
            total = total + d
        return total

    def product(self, *parts: DimLike) -> DimLike:
        total: DimLike = 1
        for d in parts:
            total = total * d
        return total

    def power(self, base: DimLike, exponent: DimLike) -> DimLike:
        if not isinstance(exponent, int) or exponent < 0:
            raise UnknownFormError(f"{base} to the power of {exponent}")
        return self.product(*[base] * exponent)

    def floor(self, a: DimLike, b: DimLike) -> DimLike:
        """a // b, where only the constant of a leaves a rest, or b is a size that leaves it whatever it is."""
        if isinstance(a, int) and isinstance(b, int):
            return a // b
        if not isinstance(b, int):
            return self._whole(a, b)
        rest = self.rest(a, b)
        return exact_div(a - rest, b)

    def _whole(self, a: DimLike, b: DimLike) -> DimLike:
        """a // b: exact, or of n*b + b-1, as which PyTorch counts parts that begin, n."""
        up = a + 1 - b
        return exact_div(a if _divides(b, a) or not self.at_least(b, 1) else up, b)

    def rest(self, a: DimLike, b: DimLike) -> DimLike:
        """a % b, where only the constant of a leaves a rest."""
        if not isinstance(b, int) or b <= 0:
            raise UnknownFormError(f"{a} modulo {b}")
        terms = a.terms if isinstance(a, Dim) else (((), a),)
        if any(c % b for symbols, c in terms if symbols):
            raise UnknownFormError(f"{a} may leave any rest when it is divided by {b}")
        return sum(c for symbols, c in terms if not symbols) % b

    def largest(self, *parts: DimLike) -> DimLike:
        return self._first(parts, lambda d, other: self.at_least(d - other, 0), "largest")

    def smallest(self, *parts: DimLike) -> DimLike:
        return self._first(parts, lambda d, other: self.at_least(other - d, 0), "smallest")

    def _first(self, parts: tuple[DimLike, ...], wins: Callable[[DimLike, DimLike], bool], what: str) -> DimLike:
        for d in parts:
            if all(wins(d, other) for other in parts):
                return d
        raise UnknownFormError(f"which of {', '.join(map(str, parts))} is the {what} depends on the inputs")

    def at_least(self, d: DimLike, low: int) -> bool:
        """Whether a dimension is `low` or more for all sizes that the program takes."""
        if isinstance(d, int):
            return d >= low
        grows = all(c > 0 for symbols, c in d.terms if symbols)
        least = d.substitute({s: self.least.get(s, 0) for s in d.symbols})
        return grows and isinstance(least, int) and least >= low


_RULES: Mapping[str, Callable[..., DimLike]] = {
    "Add": Dims.sum,
    "Mul": Dims.product,
    "Pow": Dims.power,
    "PowByNatural": Dims.power,
    "FloorDiv": Dims.floor,
    "CleanDiv": Dims.floor,
    "Mod": Dims.rest,
    "PythonMod": Dims.rest,
    "Max": Dims.largest,
    "Min": Dims.smallest,
}
"""What each class of sympy expressions means."""


def _divides(b: DimLike, a: DimLike) -> bool:
    try:
        exact_div(a, b)
    except MonographError:
        return False
    return True


def symbol_names(sizes: Mapping[str, tuple[Any, ...]]) -> dict[str, str]:
    """What the user called each symbol, by what PyTorch calls it, from the sizes of inputs by their names."""
    found: dict[str, str] = {}
    for d in (d for shape in sizes.values() for d in shape if not isinstance(d, int)):
        environment = d.node.shape_env
        said: Mapping[str, str] = getattr(environment, "source_name_to_debug_name", {})
        origins: Mapping[Any, Any] = getattr(environment, "var_to_sources", {})
        for symbol, places in origins.items():
            sources = [place.name if isinstance(place.name, str) else place.name() for place in places]
            names = (said.get(origin, origin) for origin in sources)
            found.setdefault(str(symbol), next((n for n in names if n.isidentifier()), str(symbol)))
    return found


def least_values(ranges: Mapping[Any, Any]) -> dict[str, int]:
    """The smallest value of each symbol, from the constraints of a program."""
    return {str(symbol): int(r.lower) for symbol, r in ranges.items() if r.lower.is_Integer}
