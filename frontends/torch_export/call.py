"""One call of an ATen op on its way into the graph: its arguments as values, its types, and what handlers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from ...ir import Graph, Value, ops
from ...ir.types import Dim, DimLike, DType, Shape, TensorType, bool_, product
from .dims import Dims
from .errors import UnknownFormError
from .tensors import dtype_of, part_dtype_of


@dataclass(frozen=True)
class Complex:
    """A complex tensor: two real values of its shape."""

    real: Value
    imag: Value

    @property
    def parts(self) -> tuple[Value, Value]:
        return self.real, self.imag


Result = Value | Complex | tuple[Value | Complex | None, ...]
Handler = Callable[..., Result]
"""Called with the Call and the arguments of the op in the order of its schema; gives its value, or several."""
Table = Mapping[str, Handler]
"""Handlers by the name that PyTorch prints for an op, such as aten.add.Tensor."""

Number = Value | float | Dim
"""What an argument of an op may be where it takes tensors or numbers."""


class Call:
    """A node of a program. learns: whether a gradient flows back through what it reads."""

    def __init__(self, graph: Graph, node: Any, dims: Dims, learns: bool) -> None:
        self.graph, self.node, self.dims, self.learns = graph, node, dims, learns

    @property
    def type(self) -> TensorType:
        """The type of its first result."""
        return self.type_of(self._results[0])

    @property
    def types(self) -> tuple[TensorType, ...]:
        """The types of all results."""
        return tuple(self.type_of(r) for r in self._results)

    @property
    def complex(self) -> tuple[bool, ...]:
        """Which results are complex. The types of these are those of their parts."""
        return tuple(r.dtype.is_complex for r in self._results)

    @property
    def shape(self) -> Shape:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return part_dtype_of(self._results[0].dtype)

    @property
    def _results(self) -> list[Any]:
        made = self.node.meta["val"]
        return list(cast("list[Any]", made)) if isinstance(made, (tuple, list)) else [made]

    def type_of(self, tensor: Any) -> TensorType:
        """The type of a tensor without data. Raises UnknownFormError for what the IR has no type for."""
        return TensorType(part_dtype_of(tensor.dtype), self.dims.shape(tensor.shape))

    def common(self) -> DType:
        """What the first two arguments are promoted to, as PyTorch does it."""
        given = (getattr(a, "meta", {}).get("val", a) for a in self.node.args[:2])
        x, y = (1 if isinstance(a, torch.SymInt) else a for a in given)
        return dtype_of(torch.result_type(x, y))

    def cast(self, x: Value, dtype: DType) -> Value:
        """x in another element type; what is not 0 is true."""
        if x.dtype == dtype:
            return x
        return x.ne(0) if dtype == bool_ else x.cast(dtype)

    def value(self, x: Number, dtype: DType) -> Value:
        """A tensor, a number or a size as a value of this element type."""
        if isinstance(x, Value):
            return self.cast(x, dtype)
        if isinstance(x, Dim):
            return self.cast(ops.reshape(ops.iota(start=x, length=1), shape=()), dtype)
        if dtype == bool_:
            return ops.constant(value=bool(x), dtype=dtype)
        return ops.constant(value=float(x) if dtype.is_float else int(x), dtype=dtype)

    def reshaped(self, x: Value, shape: Shape) -> Value:
        return x if x.shape == shape else ops.reshape(x, shape=shape)

    def expanded(self, x: Value, shape: Shape) -> Value:
        return x if x.shape == shape else ops.expand(x, shape=shape)

    def detached(self, x: Value) -> Value:
        """x, where a gradient would flow back through it, without that."""
        return ops.detach(x) if self.learns and x.dtype.is_float else x


def axes_of(dims: Any, rank: int) -> list[int]:
    """The axes that an argument such as `dim` names, from the first to the last; all, if it names none."""
    given = [dims] if isinstance(dims, int) else list(cast("list[int]", dims or range(rank)))
    return sorted(d % rank for d in given) if rank else []


def only(value: object, expected: object, what: str) -> None:
    """Raise UnknownFormError unless an argument has the one value that is known here."""
    if value != expected:
        raise UnknownFormError(f"{what} is {value}, expected {expected}")


def count_of(shape: Shape, axes: list[int]) -> DimLike:
    """How many elements lie along axes."""
    return product(shape[a] for a in axes)
