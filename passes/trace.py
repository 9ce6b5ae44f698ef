"""Patterns as data: run an ordinary function over typeless values and record the ops it uses."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

from ..ir.graph import NOWHERE, Attributes, Graph, Location, Node, Value, building
from ..ir.op import OPS, Op
from ..ir.types import TensorType


class Unknown:
    """A dimension, dtype or number that is only known once the pattern has matched; arithmetic keeps it unknown."""

    def __getattr__(self, name: str) -> Unknown:
        if name.startswith("__"):
            raise AttributeError(name)
        return UNKNOWN

    def __getitem__(self, index: Any) -> Unknown:
        return UNKNOWN

    def _arithmetic(self, *_: Any) -> Unknown:
        return UNKNOWN

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __neg__ = _arithmetic
    __floordiv__ = __rfloordiv__ = __truediv__ = __rtruediv__ = __mod__ = __pow__ = _arithmetic

    def __repr__(self) -> str:
        return "?"


UNKNOWN = Unknown()


class Capture(Unknown):
    """An attribute the pattern reads: it binds to what the graph has, and must be the same everywhere."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"?{self.name}"


class PatternGraph(Graph):
    """Records nodes without shape rules; plain numbers become constants."""

    def __init__(self) -> None:
        super().__init__("pattern")

    def add(
        self, op: Op, operands: Sequence[Value | None], attributes: Attributes, location: Location | None = None
    ) -> tuple[Value, ...]:
        full = op.signature.attributes_of(attributes)
        node = Node(op, operands, full, location or NOWHERE)
        node.outputs = [Value(self, _ANY, producer=node, index=i) for i in range(op.signature.outputs)]
        self.insert(node)
        return tuple(node.outputs)

    def lifted(self, op: Op, operands: Sequence[Any]) -> list[Value | None]:
        """Numbers and captured attributes as constants of a dtype that is not known."""
        return [v if v is None or isinstance(v, Value) else self._constant(v) for v in operands]

    def _constant(self, value: Any) -> Value:
        return self.add(OPS["constant"], (), {"value": value, "dtype": UNKNOWN})[0]


_ANY: TensorType = UNKNOWN  # type: ignore[assignment]


@dataclass(frozen=True)
class Pattern:
    """One traced variant: placeholders by name, captured attributes, outputs; the root makes the first output."""

    placeholders: dict[str, Value | None]
    attributes: Attributes
    outputs: tuple[Value, ...]
    size: int

    @property
    def root(self) -> Node:
        root = self.outputs[0].producer
        assert root is not None, "a pattern needs at least one op"
        return root


def trace(before: Callable[..., Any], choices: Attributes) -> list[Pattern]:
    """All variants of a pattern function, largest first.

    Positional parameters are placeholders (`= None`: with and without); keyword-only ones are attributes:
    a bool takes both values, `| None` is None or captured, others are captured; `choices` overrides (`...` captures).
    """
    parameters = inspect.signature(before).parameters.values()
    positional = [p for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    keyword = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    presence = [(True, False) if p.default is None else (True,) for p in positional]
    hints = typing.get_type_hints(before)
    values = [choices.get(p.name) or _values(hints.get(p.name)) for p in keyword]
    patterns: list[Pattern] = []
    for present in product(*presence):
        for chosen in product(*values):
            attributes = {p.name: Capture(p.name) if c is ... else c for p, c in zip(keyword, chosen, strict=True)}
            names = {p.name: here for p, here in zip(positional, present, strict=True)}
            patterns.append(_trace_one(before, names, attributes))
    return sorted(patterns, key=lambda p: -p.size)


def _values(hint: Any) -> tuple[Any, ...]:
    if hint is bool:
        return (True, False)
    return (..., None) if type(None) in typing.get_args(hint) else (...,)


def _trace_one(before: Callable[..., Any], present: dict[str, bool], attributes: Attributes) -> Pattern:
    graph = PatternGraph()
    placeholders = {n: graph.input(n, _ANY) if here else None for n, here in present.items()}
    with building(graph):
        outputs = before(*placeholders.values(), **attributes)
    made = cast("tuple[Value, ...]", outputs) if isinstance(outputs, tuple) else (outputs,)
    return Pattern(placeholders, attributes, made, len(graph))
