"""One use of an operator while a file is read: its operands, what is known of their numbers, and its attributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx

from ...ir.graph import Value
from ...ir.ops import concat, constant, iota, reshape
from ...ir.types import Dim, DimLike, DType, Shape, i64
from .errors import Unmapped

if TYPE_CHECKING:
    from .importer import Importer


@dataclass(frozen=True)
class Known:
    """Integers or truth values that are known while the file is read: an object array of numbers and dimensions."""

    array: np.ndarray[Any, Any]
    dtype: DType = i64

    @staticmethod
    def of(numbers: Any, dtype: DType = i64) -> Known:
        return Known(np.array(numbers, dtype=object), dtype)

    @property
    def flat(self) -> list[DimLike]:
        return list(self.array.reshape(-1))

    @property
    def numbers(self) -> bool:
        """Whether no dimension among them is symbolic."""
        return not any(isinstance(d, Dim) for d in self.flat)

    def value(self) -> Value:
        """A value of the current graph that holds them."""
        if self.numbers:
            return constant(value=self.array.astype(self.dtype.numpy).tolist(), dtype=self.dtype)
        parts: list[Value] = []
        for d in self.flat:
            one = constant(value=(d,), dtype=i64) if isinstance(d, int) else iota(start=d, length=1)
            parts.append(one)
        joined = parts[0] if len(parts) == 1 else concat(*parts, axis=0)
        shaped = joined if self.array.shape == (len(parts),) else reshape(joined, shape=self.array.shape)
        return shaped if self.dtype == i64 else shaped.cast(self.dtype)


class Use:
    """A node with its operands. version: of its domain in the file."""

    def __init__(self, importer: Importer, node: onnx.NodeProto, version: int) -> None:
        self.importer, self.node, self.version = importer, node, version
        self.attributes: Mapping[str, onnx.AttributeProto] = {a.name: a for a in node.attribute}
        self._asked: set[int | str] = set()

    # -- operands ------------------------------------------------------------------------------------------------

    def overlooked(self) -> str:
        """The first operand or attribute that nobody asked for: what was made without it may mean something else."""
        inputs = [f"operand {i}" for i, n in enumerate(self.node.input) if n and i not in self._asked]
        names = [f"attribute {k}" for k in self.attributes if k not in self._asked and k not in _HINTS]
        return next(iter([*inputs, *names]), "")

    def skip(self, *what: int | str) -> None:
        """Say that operands or attributes change nothing here."""
        self._asked.update(what)

    def has(self, i: int) -> bool:
        """Whether operand `i` is given."""
        self._asked.add(i)
        return i < len(self.node.input) and bool(self.node.input[i])

    def get(self, i: int) -> Value | None:
        """Operand `i`, None where it is left out."""
        return self.importer.value(self.node.input[i]) if self.has(i) else None

    def __getitem__(self, i: int) -> Value:
        found = self.get(i)
        if found is None:
            raise Unmapped(f"operand {i} is left out")
        return found

    @property
    def operands(self) -> list[Value]:
        return [self[i] for i in range(len(self.node.input))]

    def known(self, i: int) -> Known | None:
        """What is known of the integers of operand `i`."""
        return self.importer.known_of(self.node.input[i]) if self.has(i) else None

    def dims(self, i: int) -> Shape:
        """The integers of operand `i`, which must be known."""
        found = self.known(i)
        if found is None:
            raise Unmapped(f"the numbers of operand {i} ({self.node.input[i] if self.has(i) else ''}) are not known")
        return tuple(found.flat)

    def ints(self, i: int) -> tuple[int, ...]:
        """The integers of operand `i`, which must be known and no symbols."""
        found = self.dims(i)
        if any(isinstance(d, Dim) for d in found):
            raise Unmapped(f"operand {i} holds dimensions that are symbols")
        return tuple(int(d) for d in found if not isinstance(d, Dim))

    def number(self, i: int, default: float | None = None) -> float:
        """The one number of operand `i`, which must be known."""
        if not self.has(i) and default is not None:
            return default
        found = self.importer.array_of(self.node.input[i]) if self.has(i) else None
        if found is None or found.size != 1:
            raise Unmapped(f"operand {i} is no number that is known")
        return float(found.reshape(()).item())

    def outputs(self, *numbers: int) -> bool:
        """Whether any of these outputs is read."""
        names = [self.node.output[i] for i in numbers if i < len(self.node.output)]
        return any(name and name in self.importer.read for name in names)

    # -- attributes ----------------------------------------------------------------------------------------------

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute as Python has it: text, numbers, tuples, protos."""
        self._asked.add(name)
        if name not in self.attributes:
            return default
        found: Any = onnx.helper.get_attribute_value(self.attributes[name])
        if isinstance(found, bytes):
            return found.decode("utf-8", "replace")
        if isinstance(found, str) or not isinstance(found, Sequence):
            return found
        return tuple(cast("Sequence[Any]", found))

    def axes(self, operand: int, since: int, rank: int) -> tuple[int, ...] | None:
        """Axes, an attribute before version `since` and an operand from then on, counted from 0; None: not given."""
        given = self.attribute("axes") if self.version < since else self.ints(operand) if self.has(operand) else None
        return None if given is None else tuple(self.axis(a, rank) for a in given)

    @staticmethod
    def axis(axis: int, rank: int) -> int:
        if not -rank <= axis < max(rank, 1):
            raise Unmapped(f"axis {axis} is outside rank {rank}")
        return axis % rank if rank else 0


_HINTS = {
    "accuracy_level",
    "consumed_inputs",
    "kernel_shape",
    "momentum",
    "ratio",
    "saturate",
    "seed",
    "softmax_precision",
    "stash_type",
    "storage_order",
}
"""Attributes that change no result: how numbers are computed, what operands say too, what only training reads."""

Result = Value | Known | Sequence["Value | Known | None"]
Handler = Callable[[Use], Result]
Handlers = Mapping[str, Handler]
