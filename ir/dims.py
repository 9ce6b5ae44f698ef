"""How the symbols in the types of inputs follow from the shapes of arrays: the one place where they are solved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import RuntimeInputError
from .types import Dim, DimLike, TensorType, substitute


@dataclass(frozen=True)
class Source:
    """A symbol is (size of axis `axis` of input `input` - rest) / factor, where both hold earlier symbols only."""

    input: str
    axis: int
    rest: DimLike = 0
    factor: DimLike = 1

    @property
    def price(self) -> int:
        """What it takes to read the symbol off: nothing, a subtraction, a division, a division by what may be 0."""
        if self.factor == 1:
            return 0 if self.rest == 0 else 1
        return 2 if isinstance(self.factor, int) else 3


def sources(types: Mapping[str, TensorType]) -> dict[str, Source]:
    """Where each symbol comes from, in an order in which they can be computed.

    A symbol follows from any dimension that is linear in it and whose other symbols follow from others; symbols for
    which there is no such dimension are left out.
    """
    axes = [(name, axis, d) for name, t in types.items() for axis, d in enumerate(t.shape) if isinstance(d, Dim)]
    known: dict[str, Source] = {}
    while True:
        found: list[tuple[str, Source]] = []
        for name, axis, d in axes:
            unknown = d.symbols - known.keys()
            parts = linear(d, next(iter(unknown))) if len(unknown) == 1 else None
            if parts is not None:
                found.append((next(iter(unknown)), Source(name, axis, *parts)))
        if not found:
            return known
        symbol, source = min(found, key=lambda item: item[1].price)
        known[symbol] = source


def linear(d: Dim, symbol: str) -> tuple[DimLike, DimLike] | None:
    """(rest, factor) with d = rest + factor * symbol, neither of which has the symbol; None if there are none."""
    rest = d.substitute({symbol: 0})
    once = d.substitute({symbol: 1}) - rest
    return (rest, once) if d == rest + once * Dim.symbol(symbol) else None


def bind_dims(types: Mapping[str, TensorType], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Values of all symbols, from the shapes of the named inputs. Raises RuntimeInputError on any contradiction."""
    for name, t in types.items():
        if len(t.shape) != len(shapes[name]):
            raise RuntimeInputError(f"{name} has shape {list(shapes[name])}, expected {t}")
    values: dict[str, int] = {}
    for symbol, source in sources(types).items():
        size = shapes[source.input][source.axis]
        rest, factor = substitute((source.rest, source.factor), values)
        if not isinstance(rest, int) or not isinstance(factor, int) or factor == 0:
            continue  # A symbol before it is not known, or nothing follows from 0 * symbol.
        value = (size - rest) // factor
        if value < 0 or value * factor + rest != size:
            d = types[source.input].shape[source.axis]
            raise RuntimeInputError(f"dimension {d} cannot be {size} for any {symbol}")
        values[symbol] = value
    _check(types, shapes, values)
    return values


def _check(types: Mapping[str, TensorType], shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, int]) -> None:
    for name, t in types.items():
        for axis, (d, n) in enumerate(zip(t.shape, shapes[name], strict=True)):
            expected = d.substitute(values) if isinstance(d, Dim) else d
            if isinstance(expected, Dim):
                what = f"dimension {expected} = {n} does not determine {', '.join(sorted(expected.symbols))}"
                raise RuntimeInputError(what)
            if expected != n:
                shown = f" = {expected}" if isinstance(d, Dim) else ""
                raise RuntimeInputError(f"axis {axis} of {name} is {n}, expected {d}{shown}")
