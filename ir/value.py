"""What a graph is made of: values with their uses, nodes, and the place in the user's source they come from."""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import MonographError, did_you_mean
from .types import DType, Shape, TensorType

if TYPE_CHECKING:
    from .graph import Graph
    from .op import Op

Attributes = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Location:
    """Where the user wrote the node: file, line, and the parameter scope (layer) it belongs to."""

    file: str
    line: int
    scope: str = ""

    def __str__(self) -> str:
        place = f"{self.file.rpartition(os.sep)[2]}:{self.line}" if self.file else "?"
        return f"{place} {self.scope}" if self.scope else place


NOWHERE = Location("", 0)


@dataclass(frozen=True, slots=True)
class Init:
    """How a parameter starts when trained from nothing: normal(std), uniform(std) around 0, zeros or ones."""

    kind: str
    std: float = 0.0

    def __str__(self) -> str:
        return f"{self.kind}({self.std!r})" if self.kind in ("normal", "uniform") else self.kind


class Value:
    """One SSA value: a graph input, a parameter, or output `index` of `producer`."""

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
        """Whether it is written out in the graph."""
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

    def _apply(self, op: str, *operands: Value | float, **attributes: Any) -> Any:
        return self.graph.apply(op, operands, attributes)

    def __add__(self, other: Value | float) -> Value:
        return self._apply("add", self, other)

    def __radd__(self, other: float) -> Value:
        return self._apply("add", self, other)

    def __sub__(self, other: Value | float) -> Value:
        return self._apply("sub", self, other)

    def __rsub__(self, other: float) -> Value:
        return self._apply("sub", other, self)

    def __mul__(self, other: Value | float) -> Value:
        return self._apply("mul", self, other)

    def __rmul__(self, other: float) -> Value:
        return self._apply("mul", self, other)

    def __truediv__(self, other: Value | float) -> Value:
        return self._apply("div", self, other)

    def __rtruediv__(self, other: float) -> Value:
        return self._apply("div", other, self)

    def __matmul__(self, other: Value) -> Value:
        return self._apply("matmul", self, other)

    def __neg__(self) -> Value:
        return self._apply("neg", self)

    def __and__(self, other: Value) -> Value:
        return self._apply("logical_and", self, other)

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
        """[B, S, heads*D] -> [B, S, heads, D]."""
        return self.reshape(self.shape[0], self.shape[1], heads, -1)

    def merge_heads(self) -> Value:
        """[B, S, H, D] -> [B, S, H*D]."""
        return self.reshape(self.shape[0], self.shape[1], -1)

    def __repr__(self) -> str:
        label = f"@{self.name}" if self.is_param else f"%{self.name or '?'}"
        origin = f" from {self.producer.op.name} at {self.producer.location}" if self.producer else ""
        return f"{label}: {self.type}{origin}"


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
