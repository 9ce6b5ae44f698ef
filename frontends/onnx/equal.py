"""Sizes that a file needs to be equal to run at all: seen where two meet, and taken to be one when it is read again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, lcm

import numpy as np

from ...ir.errors import MonographError
from ...ir.tensors import Array
from ...ir.types import Dim, DimLike, Shape, exact_div, never_negative, product

MEETING = frozenset(
    "Add Sub Mul Div Mod Pow Max Min Where And Or Xor Less LessOrEqual Greater GreaterOrEqual Equal MatMul".split()
)
"""Operators whose operands must have equal sizes, or sizes of 1, counted from the last axis."""


class Equal(Exception):
    """A symbol stands for another size: the file is read again with it. An outcome of reading, not an error."""

    def __init__(self, name: str, value: DimLike) -> None:
        super().__init__(f"{name} is {value}")
        self.name, self.value = name, value


@dataclass(frozen=True)
class Part:
    """A size `of` over a number, rounded; the source is what it is a part of in the end, over `whole`."""

    of: str
    by: int
    up: bool
    source: str
    whole: int


class Sizes:
    """What is known of the symbols of one file.

    bound: symbols, and products a*b of some that strides made, and what they stand for. refused: names of extremes that
    did not turn out to be one of their sides. A symbol never stands for 1 where it meets another size: exporters give
    such an axis the size 1. An axis that is filled up to windows has the size of which nothing is left over, and one of
    channels as many as the kernel.
    quotients: symbols that are a size of an input over a number, rounded. shown: what sizes over a number are, rounded
    down, where strides do so: an axis of a result shows it, whatever is left over. rounded: symbols that are one of
    these, free: all symbols in these.
    """

    def __init__(self, bound: Mapping[str, DimLike], refused: Iterable[str]) -> None:
        self.bound, self.refused = dict(bound), set(refused)
        self.extremes: dict[str, tuple[DimLike, DimLike]] = {}
        self.quotients: dict[str, Part] = {}
        self.shown: dict[tuple[DimLike, int], DimLike] = {}
        self.rounded: dict[str, tuple[DimLike, int]] = {}
        self.free: set[str] = set()
        self.inputs: list[str] = []
        self.batches: list[str] = []

    def declare(self, shape: Shape) -> None:
        """Note the symbols of an input, in the order of the inputs."""
        for i, d in enumerate(shape):
            for s in sorted(d.symbols) if isinstance(d, Dim) else ():
                self.inputs += [s] * (s not in self.inputs)
                if i == 0 and len(shape) > 1:
                    self.batches += [s] * (s not in self.batches)

    def extreme(self, kind: str, a: DimLike, b: DimLike) -> DimLike | None:
        """The larger or smaller of two sizes as a symbol, until it meets a size that only one of them is."""
        name = re.sub(r"\W+", "_", f"{kind} {a} {b}".replace("-", "minus "))
        if name in self.bound:
            return self.bound[name]
        if name in self.refused:
            return None
        self.extremes[name] = a, b
        return Dim.symbol(name)

    def steps(self, room: DimLike, by: int) -> DimLike:
        """How many steps of a kernel start inside of a room, at least one: an axis of a result, which shows it."""
        if isinstance(room, int):
            return room // by + 1
        whole, rest, by = self._floor(room + by, by)
        if not isinstance(rest, Dim):
            return whole + rest // by
        if (rest, by) in self.shown:
            return whole + self.shown[rest, by]
        size = whole * by + rest
        name = self.name("floor", size, by)
        found = self.bound.get(name, Dim.symbol(name))
        self.shown[rest, by] = found - whole
        if found == Dim.symbol(name):
            self.rounded[name] = size, by
        self.free |= _symbols(found)
        self.inputs += [s for s in sorted(_symbols(found)) if s not in self.inputs]
        return found

    def seen(self, a: DimLike, by: int) -> DimLike | None:
        """A size over a number, rounded down, where an axis of a result shows it."""
        whole, rest, by = self._floor(a, by)
        found = self.shown.get((rest, by))
        return None if found is None else whole + found

    def _floor(self, a: DimLike, by: int) -> tuple[DimLike, DimLike, int]:
        """(w, r, n): w + r / n, rounded down, is as much as a / by; of what is rounded down itself, of the whole."""
        for s in sorted(_symbols(a) & self.rounded.keys()):
            more = a - Dim.symbol(s)
            if isinstance(more, int):
                size, times = self.rounded[s]
                a, by = size + more * times, by * times
        return (*_split(a, by), by) if isinstance(a, Dim) else (0, a, by)

    def name(self, kind: str, size: DimLike, by: int) -> str:
        """The name of a size over a number."""
        plain = str(size)
        for sign, word in (("-", "_minus_"), ("+", "_plus_"), ("*", "_times_")):
            plain = plain.replace(sign, word)
        return f"{kind}_{plain}_over_{by}"

    def quotient(self, a: DimLike, by: int) -> DimLike | None:
        """How often `by` fits into a size, rounded down, with a symbol for what is not known of it; None: refused."""
        if by < 1:
            return None
        if isinstance(a, int):
            return a // by
        if (seen := self.seen(a, by)) is not None:
            return seen
        whole, rest = _split(a, by)
        if not isinstance(rest, Dim):
            return whole + rest // by
        more = sum(count for symbols, count in rest.terms if not symbols)
        (symbols, count), *others = (term for term in rest.terms if term[0])
        if others or len(symbols) != 1:
            return None
        common = gcd(count, by)
        count, more, by = count // common, more // common, by // common
        if count not in (1, by - 1) or more not in (0, by - 1):
            return None
        # Of -n as of n, rounded the other way: (by - 1) * n is by * n - n.
        symbol, back = Dim.symbol(symbols[0]), count != 1
        part = self._part(symbols[0], by, up=(more != 0) != back)
        return None if part is None else whole + symbol - part if back else whole + part

    def _part(self, symbol: str, by: int, *, up: bool) -> DimLike | None:
        """The symbol of a size of an input, or of a part of one, over a number: rounded down or up."""
        if up and by == 2:
            down = self._part(symbol, by, up=False)
            return None if down is None else Dim.symbol(symbol) - down
        name = self.name("ceil" if up else "floor", Dim.symbol(symbol), by)
        before = self.quotients.get(symbol)
        source, whole = (before.source, before.whole) if before else (symbol, 1)
        if source not in self.inputs or name in self.refused:
            return None
        self.quotients[name] = Part(symbol, by, up, source, whole * by)
        return Dim.symbol(name)

    @property
    def open(self) -> set[str]:
        """Symbols that did not turn out to be something else."""
        return {*self.extremes, *self.quotients}

    def met(self, kind: str, shapes: Sequence[Shape], along: int = 0) -> None:
        """Raise Equal if what a node reads only fits with a symbol being another size. kind: its op type. along: the
        axis along which a Concat joins."""
        if kind == "Concat" and shapes and len(set(map(len, shapes))) == 1 and shapes[0]:
            rest = [[d for i, d in enumerate(s) if i != along % len(s)] for s in shapes]
            for other in rest[1:]:
                for a, b in zip(rest[0], other, strict=True):
                    self._one(a, b)
        if kind not in MEETING:
            return
        if kind == "MatMul" and len(shapes) == 2 and all(len(s) > 1 for s in shapes):
            x, y = shapes
            self._one(x[-1], y[-2])
            shapes = [x[:-2], y[:-2]]
        most = max(map(len, shapes), default=0)
        for axis in range(1, most + 1):
            here = [s[-axis] for s in shapes if len(s) >= axis and s[-axis] != 1]
            for other in here[1:]:
                self._one(here[0], other)

    def counted(self, a: DimLike, b: DimLike) -> None:
        """Raise Equal for an axis of an input that must be as long as a number says: of channels, and of terms."""
        for d, count in ((a, b), (b, a)):
            if str(d) in self.inputs and isinstance(count, int):
                raise Equal(str(d), count)

    def _one(self, a: DimLike, b: DimLike) -> None:
        if a == b:
            return
        self._patches(a, b)
        self._split(a, b)
        for name in sorted(_symbols(a) ^ _symbols(b)):
            if name not in self.extremes:
                continue
            for value in self.extremes[name]:
                x, y = (d.substitute({name: value}) if isinstance(d, Dim) else d for d in (a, b))
                if x == 1 or y == 1:
                    raise Equal(name, value)
            for value in self.extremes[name]:
                x, y = (d.substitute({name: value}) if isinstance(d, Dim) else d for d in (a, b))
                if x == y:
                    raise Equal(name, value)
        a, b = _apart(a, b)
        plain = [(d, o) for d, o in ((a, b), (b, a)) if str(d) in self.inputs and str(d) not in _symbols(o)]
        known = [(str(d), o) for d, o in plain if _symbols(o) and _symbols(o) <= set(self.inputs)]
        if known:  # The symbol of a later input becomes that of an earlier one.
            raise Equal(*max(known, key=lambda pair: self.inputs.index(pair[0])))

    def _patches(self, a: DimLike, b: DimLike) -> None:
        """Raise Equal for an axis that a stride made, of which there must be so many."""
        size, count = (a, b) if isinstance(b, int) else (b, a)
        if not isinstance(size, Dim) or not isinstance(count, int) or not never_negative(size):
            return
        name, *others = sorted(size.symbols)
        if others or name not in self.free:
            return
        for each in range(1, count + 1):
            found = size.substitute({name: each})
            if found == count:
                raise Equal(name, each)
            if not isinstance(found, int) or found > count:
                return

    def number(self, d: DimLike, size: DimLike) -> None:
        """Raise Equal for an axis whose size a node knows as a number."""
        if isinstance(size, int) and isinstance(d, Dim) and d.name is not None:
            raise Equal(d.name, size)

    def divided(self, a: DimLike, b: DimLike) -> None:
        """Raise Equal if one size divides the other only where the inputs have one batch: axis 0 of two of them."""
        try:
            exact_div(a, b)
        except MonographError:
            pass
        else:
            return
        self._one_batch(a, b)

    def _one_batch(self, a: DimLike, b: DimLike) -> None:
        """Raise Equal if each of two sizes has the batch of another input."""
        above, below = ([s for s in self.batches if s in _symbols(x) - _symbols(y)] for x, y in ((a, b), (b, a)))
        if above and below:
            earlier, later = sorted((above[0], below[0]), key=self.batches.index)
            raise Equal(later, Dim.symbol(earlier))

    def reshaped(self, shape: Shape, wanted: Shape) -> None:
        """The same for a reshape, of which one size may be -1, and some 0."""
        named, total = product(d for d in wanted if d != -1), product(shape)
        if named != 0 and -1 in wanted:
            self.divided(total, named)
        elif named != 0:
            self._split(total, named)
            self._together(total, named)
            self._one(total, named)
            self._one_batch(total, named)

    def _split(self, total: DimLike, named: DimLike) -> None:
        """Raise Equal for sizes that are one only where nothing is left over of parts that they are split in."""
        parts = {s: self.quotients[s] for s in sorted(_symbols(total) | _symbols(named)) if s in self.quotients}
        whole: dict[str, int] = {}
        for part in parts.values():
            whole[part.source] = lcm(whole.get(part.source, 1), part.whole)
        counts = {source: Dim.symbol(self._over(source, by)) for source, by in whole.items()}

        def gap(left: Mapping[str, int]) -> DimLike:
            """The difference of both where so much is left over of each source."""
            found = {source: whole[source] * count + left.get(source, 0) for source, count in counts.items()}
            for s, part in parts.items():
                over = self._rounded(s, left.get(part.source, 0))
                found[s] = whole[part.source] // part.whole * counts[part.source] + over
            return _substituted(total - named, found)

        if total == named or gap({}) != 0:
            return
        gaps = [(gap({source: left}), counts[source]) for source, by in whole.items() for left in range(1, by)]
        least = [(g, _substituted(g, dict.fromkeys(count.symbols, 0))) for g, count in gaps]
        if any(all(never_negative(sign * g) and first != 0 for g, first in least) for sign in (1, -1)):
            source = next(iter(whole))
            raise Equal(source, whole[source] * counts[source])

    def _together(self, total: DimLike, named: DimLike) -> None:
        """Raise Equal for a product of axes that strides made, of which there must be as many as a number says."""
        if not (isinstance(total, Dim) and isinstance(named, Dim) and len(total.terms) == len(named.terms) == 1):
            return
        ((m, c),), ((n, d),) = total.terms, named.terms
        for (symbols, by), (others, count) in (((m, c), (n, d)), ((n, d), (m, c))):
            left = list((Counter(symbols) - Counter(others)).elements())
            same = Counter(others) - Counter(symbols)
            name = "*".join(sorted(left))
            if left and not same and name not in self.bound and self.free.issuperset(left) and count % by == 0:
                raise Equal(name, count // by)

    def settle(self, known: Iterable[Array]) -> None:
        """Write sizes for products of axes of which there must be so many."""
        products = {name: count for name, count in self.bound.items() if "*" in name}

        def settled(d: DimLike) -> DimLike:
            found: DimLike = 0
            for symbols, c in d.terms if isinstance(d, Dim) else ():
                found = found + c * products.get("*".join(symbols), _product(symbols))
            return found if isinstance(d, Dim) else d

        for array in known if products else ():
            array[...] = np.frompyfunc(settled, 1, 1)(array)

    def _rounded(self, name: str, size: int) -> int:
        """A part of a source of that size."""
        part = self.quotients.get(name)
        if part is None:
            return size
        size = self._rounded(part.of, size)
        return -(-size // part.by) if part.up else size // part.by

    def _over(self, source: str, by: int) -> str:
        """The name of how often a number fits into a size, which may be such a count itself."""
        before = None if source in self.free else re.fullmatch(r"(\w+)_over_(\d+)", source)
        name = f"{before[1]}_over_{int(before[2]) * by}" if before else f"{source}_over_{by}"
        return f"{source}_over_{by}" if name in self.inputs else name

    def chosen(self, d: DimLike) -> bool:
        """Whether a size is made of extremes, of which is not known yet what they are."""
        return bool(_symbols(d)) and _symbols(d) <= self.extremes.keys()


def least(size: Dim) -> int:
    """What a size is at least where what has it has elements. A sum may have some where a part of it is 0: a past."""
    counted = [c for symbols, c in size.terms if symbols]
    rest = sum(c for symbols, c in size.terms if not symbols)
    if min(counted) < 0:
        return 0
    if rest > 0:
        return rest
    return max(counted[0] + rest, 0) if len(counted) == 1 else 0


def _apart(a: DimLike, b: DimLike) -> tuple[DimLike, DimLike]:
    """Two sizes without the terms and the factors that both have: of a past and new tokens, the pasts."""
    gap = a - b
    if not isinstance(gap, Dim) or len(gap.terms) != 2 or sum(c for _, c in gap.terms) != 0:
        return a, b
    (m, c), (n, _) = gap.terms
    x, y = (_product(list((Counter(p) - Counter(q)).elements())) for p, q in ((m, n), (n, m)))
    return (x, y) if c > 0 else (y, x)


def _product(symbols: Iterable[str]) -> DimLike:
    return product(Dim.symbol(s) for s in symbols)


def _split(d: Dim, by: int) -> tuple[DimLike, DimLike]:
    """(w, r) with d = w * by + r and no multiple of `by` in r."""
    whole: DimLike = 0
    for monomial, coefficient in d.terms:
        part: DimLike = coefficient // by
        for s in monomial:
            part = part * Dim.symbol(s)
        whole = whole + part
    return whole, d - by * whole


def _substituted(d: DimLike, sizes: Mapping[str, DimLike]) -> DimLike:
    return d.substitute(sizes) if isinstance(d, Dim) else d


def _symbols(d: DimLike) -> frozenset[str]:
    return d.symbols if isinstance(d, Dim) else frozenset()
