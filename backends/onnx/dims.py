"""Symbolic dimensions as ONNX integer arithmetic on the shapes of graph inputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ...ir.dims import Source, linear, sources
from ...ir.errors import LoweringError
from ...ir.types import Dim, DimLike, TensorType, i64

if TYPE_CHECKING:
    from .builder import Builder, Handle

_ONE = TensorType(i64, (1,))


class Dims:
    """Makes each dimension once, as a vector of one i64; sums and products follow the polynomial."""

    def __init__(self, op: Builder) -> None:
        self.op = op
        self.known: dict[DimLike, Handle] = {}

    def learn(self, d: DimLike, h: Handle, axis: int) -> None:
        """Take a symbol that no input shows, and no result before, from an axis of a result."""
        unknown = [s for s in _symbols(d) if s not in self.sources and Dim.symbol(s) not in self.known]
        parts = linear(d, unknown[0]) if isinstance(d, Dim) and len(unknown) == 1 else None
        if parts is not None:
            self.known[Dim.symbol(unknown[0])] = self.solved(self.axis(h, axis), *parts)

    def scalar(self, d: DimLike) -> Handle:
        """A dimension as an i64 scalar."""
        if isinstance(d, int):
            return self.op.constant(np.array(d, np.int64))
        return self.op.Squeeze(self.single(d), self.op.constant(np.array([0], np.int64)), types=[TensorType(i64, ())])

    def vector(self, dims: Sequence[DimLike]) -> Handle:
        """Dimensions as one i64 vector."""
        if all(isinstance(d, int) for d in dims):
            return self.op.constant(np.array(dims, np.int64))
        if len(dims) == 1:
            return self.single(dims[0])
        return self.op.Concat(*map(self.single, dims), axis=0, types=[TensorType(i64, (len(dims),))])

    def single(self, d: DimLike) -> Handle:
        """A dimension as a vector of one element. Raises LoweringError if a symbol of it is not known."""
        if isinstance(d, int):
            return self.op.constant(np.array([d], np.int64))
        if d not in self.known:
            self.known[d] = self.symbol(d.name) if d.name else self.polynomial(d)
        return self.known[d]

    def symbol(self, name: str) -> Handle:
        """A symbol, from the input that it follows from."""
        source = self.sources.get(name)
        if source is None:
            shown = ", ".join(map(str, self.op.inputs.values()))
            raise LoweringError(f"no input determines dimension {name}: the inputs are {shown}")
        return self.solved(self.axis(self.op.inputs[source.input], source.axis), source.rest, source.factor)

    def solved(self, size: Handle, rest: DimLike, factor: DimLike) -> Handle:
        """What times `factor` and with `rest` is a size."""
        if rest != 0:
            size = self.op.Sub(size, self.single(rest), types=[_ONE])
        return size if factor == 1 else self.op.Div(size, self.single(factor), types=[_ONE])

    @cached_property
    def sources(self) -> dict[str, Source]:
        """Where each symbol comes from; all inputs are there before the first dimension is asked for."""
        return sources({name: h.type for name, h in self.op.inputs.items()})

    def axis(self, h: Handle, axis: int) -> Handle:
        return self.op.Shape(h, start=axis, end=axis + 1, types=[_ONE])

    def polynomial(self, d: Dim) -> Handle:
        total: Handle | None = None
        for monomial, coefficient in sorted(d.terms, key=lambda t: t[1] < 0):
            total = self.term(total, monomial, coefficient)
        assert total is not None, "a Dim has at least one term"
        return total

    def term(self, total: Handle | None, monomial: tuple[str, ...], coefficient: int) -> Handle:
        """`total` plus coefficient * symbols; subtraction where that spares a multiplication by -1."""
        minus = total is not None and coefficient < 0
        size = -coefficient if minus else coefficient
        factors = [self.single(Dim.symbol(s)) for s in monomial]
        if size != 1 or not factors:
            factors.append(self.single(size))
        value = factors[0]
        for f in factors[1:]:
            value = self.op.Mul(value, f, types=[_ONE])
        if total is None:
            return value
        return self.op.Sub(total, value, types=[_ONE]) if minus else self.op.Add(total, value, types=[_ONE])


def _symbols(d: DimLike) -> list[str]:
    return sorted(d.symbols) if isinstance(d, Dim) else []
