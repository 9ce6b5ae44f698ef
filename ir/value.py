"""What a graph is made of: values with their uses, nodes, and the place in the user's source they come from."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import TYPE_CHECKING, Any, NoReturn, Union

import numpy as np

from .errors import MonographError, NotANumberError, OpError, did_you_mean
from .init import Init
from .types import Dim, DType, Shape, TensorType, bool_, f32

if TYPE_CHECKING:
    from .graph import Graph
    from .op import Op

Attributes = dict[str, Any]
Operand = Union["Value", float, Dim]
"""What an elementwise op takes: a value of the graph, a plain number (an int, too), or a dimension."""
Index = Union[int, Dim, slice, None, EllipsisType, "Value", Sequence[int], np.ndarray[Any, Any]]
"""What stands in `x[...]`, alone or in a tuple."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where the user wrote the node: file, line (0: the file has none), and the parameter scope (layer) it is in."""

    file: str
    line: int
    scope: str = ""

    def __str__(self) -> str:
        file = self.file.rpartition(os.sep)[2] or "?"
        place = f"{file}:{self.line}" if self.line else file
        return f"{place} {self.scope}" if self.scope else place


NOWHERE = Location("", 0)


class Value:
    """One SSA value: a graph input, a parameter, or output `index` of `producer`.

    Python's operators and `x[...]` add nodes to its graph. A plain number takes the dtype of the value; if the value
    is of integers and the number a float, the result is f32 (PyTorch's rule). Values of two dtypes are never mixed:
    cast one. `==` and `!=` compare identity, as keys of a dict need it; the elementwise ones are `x.eq(y)` and
    `x.ne(y)`.
    """

    __slots__ = ("graph", "index", "init", "name", "producer", "type", "uses")

    def __init__(
        self, graph: Graph, type: TensorType, name: str = "", producer: Node | None = None, index: int = 0
    ) -> None:
        self.graph, self.type, self.name, self.producer, self.index = graph, type, name, producer, index
        self.uses: dict[tuple[Node, int], None] = {}
        self.init: Init | None = None

    @property
    def dtype(self) -> DType:
        """The type of its elements."""
        return self.type.dtype

    @property
    def shape(self) -> Shape:
        """Its dimensions: numbers, symbols such as B and S, or sums and products of them."""
        return self.type.shape

    @property
    def rank(self) -> int:
        """How many dimensions there are."""
        return self.type.rank

    @property
    def is_param(self) -> bool:
        """Whether it is a parameter of the graph."""
        return self.producer is None and self.graph.params.get(self.name) is self

    @property
    def is_constant(self) -> bool:
        """Whether it is a constant of the graph."""
        return self.producer is not None and self.producer.op.constant

    @property
    def number(self) -> Any:
        """The number of a scalar constant; None for any other value."""
        value = self.producer.attributes["value"] if self.producer is not None and self.producer.op.constant else None
        return None if isinstance(value, tuple) else value

    @property
    def users(self) -> list[Node]:
        """Nodes that read this value, without repetition."""
        return list(dict.fromkeys(node for node, _ in self.uses))

    def _apply(self, op: str, *operands: Operand, **attributes: Any) -> Any:
        return self.graph.apply(op, operands, attributes)

    def __add__(self, other: Operand) -> Value:
        return self._apply("add", self, other)

    def __radd__(self, other: Operand) -> Value:
        return self._apply("add", self, other)

    def __sub__(self, other: Operand) -> Value:
        return self._apply("sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return self._apply("sub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return self._apply("mul", self, other)

    def __rmul__(self, other: Operand) -> Value:
        return self._apply("mul", self, other)

    def __truediv__(self, other: Operand) -> Value:
        """x / y; integers are divided in f32."""
        return self._apply("div", self._as_float(), other._as_float() if isinstance(other, Value) else other)

    def __rtruediv__(self, other: Operand) -> Value:
        return self._apply("div", other, self._as_float())

    def __floordiv__(self, other: Operand) -> Value:
        return self._apply("floor_div", self, other)

    def __rfloordiv__(self, other: Operand) -> Value:
        return self._apply("floor_div", other, self)

    def __mod__(self, other: Operand) -> Value:
        return self._apply("mod", self, other)

    def __rmod__(self, other: Operand) -> Value:
        return self._apply("mod", other, self)

    def __pow__(self, other: Operand) -> Value:
        """x ** y; of integers, where y is a plain number that is not negative."""
        if isinstance(other, int) and not self.dtype.is_float and self.dtype != bool_:
            return self._power(other)
        return self._apply("pow", self, other)

    def __rpow__(self, other: Operand) -> Value:
        return self._apply("pow", other, self)

    def __matmul__(self, other: Value) -> Value:
        return self._apply("matmul", self, other)

    def __neg__(self) -> Value:
        return self._apply("neg", self)

    def __pos__(self) -> Value:
        return self

    def __abs__(self) -> Value:
        return self._apply("abs", self)

    def __lt__(self, other: Operand) -> Value:
        return self._apply("less", self, other)

    def __le__(self, other: Operand) -> Value:
        return self._apply("less_equal", self, other)

    def __gt__(self, other: Operand) -> Value:
        return self._apply("less", other, self)

    def __ge__(self, other: Operand) -> Value:
        return self._apply("less_equal", other, self)

    def eq(self, other: Operand) -> Value:
        """Elementwise equality, bool; `==` asks whether both are the same value of the graph."""
        return self._apply("equal", self, other)

    def ne(self, other: Operand) -> Value:
        """Elementwise inequality, bool."""
        return ~self.eq(other)

    def __and__(self, other: Value | bool) -> Value:
        return self._apply("logical_and", self, other)

    def __rand__(self, other: bool) -> Value:
        return self._apply("logical_and", self, other)

    def __or__(self, other: Value | bool) -> Value:
        return self._apply("logical_or", self, other)

    def __ror__(self, other: bool) -> Value:
        return self._apply("logical_or", self, other)

    def __xor__(self, other: Value | bool) -> Value:
        return (self | other) & ~(self & other)

    def __rxor__(self, other: bool) -> Value:
        return self ^ other

    def __invert__(self) -> Value:
        return self._apply("logical_not", self)

    def _as_float(self) -> Value:
        return self if self.dtype.is_float else self.cast(f32)

    def _power(self, exponent: int) -> Value:
        """A product of `exponent` factors, by squaring."""
        if exponent < 0:
            raise self._error(f"{self.type} to the power of {exponent}: an integer has none", "cast it to a float type")
        found = self
        for bit in f"{exponent:b}"[1:]:
            found = found * found * self if bit == "1" else found * found
        return self * 0 + 1 if exponent == 0 else found

    def cast(self, dtype: DType) -> Value:
        """The same numbers as another type of elements."""
        return self._apply("cast", self, dtype=dtype)

    def reshape(self, *shape: Any) -> Value:
        """The same elements in another shape; one -1 stands for what is left."""
        return self._apply("reshape", self, shape=tuple(shape))

    def transpose(self, *permutation: int) -> Value:
        """The axes in another order."""
        return self._apply("transpose", self, permutation=tuple(permutation))

    def split_heads(self, heads: int) -> Value:
        """[B, S, heads*D] -> [B, S, heads, D]. Raises OpError where the channels do not split into that many."""
        what = "" if self.rank == 3 else f"split_heads takes [B, S, heads*D], not {self.type}"
        channels = self.shape[-1] if self.shape else 0
        if not what and isinstance(channels, int) and (heads < 1 or channels % heads):
            what = f"{channels} channels do not split into {heads} heads"
        if what:
            raise OpError(what, place=self._place, details=[repr(self)])
        return self.reshape(self.shape[0], self.shape[1], heads, -1)

    def merge_heads(self) -> Value:
        """[B, S, H, D] -> [B, S, H*D]."""
        return self.reshape(self.shape[0], self.shape[1], -1)

    # -- as a sequence, a truth, an array ----------------------------------------------------------------------

    def __getitem__(self, key: Index | tuple[Index, ...]) -> Value:
        """x[key] as NumPy has it: integers, slices with steps, None, `...`, also on symbolic axes, and integer values.

        Raises OpError for what is outside, and for bools, whose result has no shape of its own.
        """
        from .indexing import item

        try:
            return item(self, key)
        except OpError as e:
            if e.place:
                raise
            raise OpError(e.what, place=self._place, details=[repr(self)], hint=e.hint) from None

    def __len__(self) -> int:
        """The size of the first axis. Raises OpError for a scalar, and where the size is no number."""
        if not self.shape or not isinstance(self.shape[0], int):
            why = f"its first axis is {self.shape[0]}" if self.shape else "it is a scalar"
            raise self._error(f"{self.type} has no len(): {why}", "x.shape has the sizes of all axes")
        return self.shape[0]

    def __iter__(self) -> Iterator[Value]:
        """The parts along the first axis. Raises OpError as `len` does."""
        return iter([self[i] for i in range(len(self))])

    def __contains__(self, item: object) -> NoReturn:
        raise self._error("a value of a graph has no numbers to look into", "compare by x.eq(y)")

    def __bool__(self) -> NoReturn:
        hint = "use ops.where(condition, x, y), and `&`, `|`, `~` for `and`, `or`, `not`"
        raise self._error("a value of a graph has no truth before it runs", hint)

    def __array__(self, dtype: object = None, copy: object = None) -> NoReturn:
        raise self._error("a value of a graph has no numbers before it runs", "use ops.*, or interpret(graph, inputs)")

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **given: Any) -> Value:
        """A number of NumPy on the left of an operator. Raises OpError for functions of NumPy."""
        from .foreign import reflected, refused

        if (by := reflected(self, function, method, inputs)) is not None:
            return by(inputs[0])
        raise refused("numpy", function, [self])

    def __array_function__(self, function: Any, types: Any, inputs: Any, given: Any) -> NoReturn:
        from .foreign import refused

        raise refused("numpy", function, [self])

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, inputs: Any = (), given: Any = None) -> NoReturn:
        from .foreign import refused

        raise refused("torch", function, inputs)

    def _error(self, what: str, hint: str) -> NotANumberError:
        return NotANumberError(what, place=self._place, details=[repr(self)], hint=hint)

    @property
    def _place(self) -> str:
        from .builder import place_of

        return str(place_of(self.graph))

    if not TYPE_CHECKING:  # a checker knows the names above, and calls any other an error

        def __getattr__(self, name: str) -> Any:
            from .foreign import unknown_method

            raise AttributeError(unknown_method(name, dir(Value)))

    def __repr__(self) -> str:
        label = f"@{self.name}: " if self.is_param else f"%{self.name}: " if self.name else ""
        origin = f" from {self.producer.op.name} at {self.producer.location}" if self.producer else ""
        return f"{label}{self.type}{origin}"


def type_of(value: Value | None) -> TensorType | None:
    """The type of an operand that may be absent."""
    return None if value is None else value.type


def ancestors(value: Value, known: Container[Value] = ()) -> list[Node]:
    """The nodes that a value is computed from, in topological order. known: values to go no further than."""
    found: set[Node] = set()
    waiting = [value]
    while waiting:
        v = waiting.pop()
        if v not in known and v.producer is not None and v.producer not in found:
            found.add(v.producer)
            waiting += v.producer.arguments
    return sorted(found, key=lambda node: node.order)


def leaves(value: Value) -> list[Value]:
    """The inputs and parameters that a value is computed from, without repetition; an input or parameter itself."""
    read = [value, *(v for node in ancestors(value) for v in node.arguments)]
    return list(dict.fromkeys(v for v in read if v.producer is None))


class Node:
    """One operation in a graph. `order` grows along the node list (-1: erased); compare it, never store it."""

    __slots__ = ("attributes", "location", "next", "op", "operands", "order", "outputs", "previous")

    def __init__(self, op: Op, operands: Sequence[Value | None], attributes: Attributes, location: Location) -> None:
        self.op, self.operands, self.attributes, self.location = op, list(operands), attributes, location
        self.outputs: list[Value] = []
        self.previous: Node | None = None
        self.next: Node | None = None
        self.order = 0

    @property
    def output(self) -> Value:
        """The only output. Raises MonographError for an op with several."""
        if len(self.outputs) != 1:
            raise MonographError(f"{self.op.name} has {len(self.outputs)} outputs, not one", place=str(self.location))
        return self.outputs[0]

    @property
    def arguments(self) -> list[Value]:
        """Operands that are present."""
        return [v for v in self.operands if v is not None]

    def __getitem__(self, name: str) -> Value | None:
        """The operand called `name` in the signature of the op; None for an optional one that is absent.

        Raises MonographError for a name that the op does not have.
        """
        names = self.op.signature.operands
        if name not in names:
            what = f"{self.op.name} has no operand {name!r}{did_you_mean(name, names)}"
            raise MonographError(what, place=str(self.location))
        return self.operands[names.index(name)]

    def value(self, name: str) -> Value:
        """The operand called `name`, which must be present. Raises MonographError otherwise."""
        found = self[name]
        if found is None:
            raise MonographError(f"{self.op.name} has no {name} here", place=str(self.location))
        return found

    def place_of(self, name: str) -> int:
        """Where the operand called `name` stands in `operands`. Raises MonographError for an unknown name."""
        self[name]
        return self.op.signature.operands.index(name)

    def __repr__(self) -> str:
        return f"{self.op.name} at {self.location}"
