"""Operands, attributes and outputs of an op, read from the signature of its `infer`."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .errors import MonographError, OpError, did_you_mean
from .value import Attributes, Value

if TYPE_CHECKING:
    from .op import Op


class Signature:
    """Names of operands and attributes of an op, and the number of its outputs (-1: any).

    optional: operands that may be absent. variadic: the operand that takes what the others leave. attributes: their
    defaults. hints: their types.
    """

    def __init__(self, op: Op) -> None:
        parameters = inspect.signature(op.infer).parameters.values()
        kinds = inspect.Parameter
        try:
            self.hints: Mapping[str, Any] = typing.get_type_hints(op.infer)
        except NameError as e:
            what = f"op {op.name}: {e.name} in an annotation of `infer` is not there when the program runs"
            raise MonographError(what, hint="import it outside of `if TYPE_CHECKING`") from e
        self.outputs = _outputs(self.hints.get("return"))
        self.operands = [p.name for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
        self.variadic = next((p.name for p in parameters if p.kind is kinds.VAR_POSITIONAL), None)
        self.optional = {p.name for p in parameters if p.default is None and p.name in self.operands}
        self.attributes = {p.name: p.default for p in parameters if p.kind is kinds.KEYWORD_ONLY}

    def operand_names(self, count: int) -> list[str]:
        extra = [f"{self.variadic}[{i}]" for i in range(count - len(self.operands))] if self.variadic else []
        return (self.operands + extra)[:count]

    def attributes_of(self, given: Attributes) -> Attributes:
        """All attributes with defaults filled in. Raises OpError for a missing or unknown one."""
        for name in given:
            if name not in self.attributes:
                raise OpError(f"has no attribute {name!r}{did_you_mean(name, self.attributes)}")
        full = {k: _plain(given.get(k, default)) for k, default in self.attributes.items()}
        missing = [k for k, v in full.items() if v is inspect.Parameter.empty]
        if missing:
            raise OpError(f"attribute {missing[0]!r} is missing")
        return full

    def bind(self, args: Sequence[Any], kwargs: Attributes) -> tuple[list[Any], Attributes]:
        """Split a Python call into operands (optional ones filled with None) and attributes."""
        operands = list(args)
        for name in self.operands[len(operands) :]:
            operands.append(kwargs.pop(name, None))
        return operands, kwargs

    def check(self, operands: Sequence[Value | None], attributes: Attributes) -> None:
        """Raises OpError for a missing operand, for too many, and for an attribute of another type."""
        given = [*operands, *[None] * (len(self.operands) - len(operands))]
        for name, v in zip(self.operands, given, strict=False):
            if v is None and name not in self.optional:
                raise OpError(f"operand {name!r} is missing")
        if not operands and self.variadic:
            raise OpError("takes at least one operand")
        if len(operands) > len(self.operands) and not self.variadic:
            raise OpError(f"takes {len(self.operands)} operands but {len(operands)} were given")
        for name, value in attributes.items():
            hint = self.hints.get(name, Any)
            if not fits(value, hint):
                raise OpError(f"attribute {name} is {value!r}, expected {_shown(hint)}")


def fits(value: Any, hint: Any) -> bool:
    """Whether an attribute has the type that its annotation says; a float may be written as an integer."""
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in arguments)
    if origin is tuple:
        items = cast("tuple[Any, ...]", value)
        if len(arguments) == 2 and arguments[1] is ...:
            return isinstance(value, tuple) and all(fits(v, arguments[0]) for v in items)
        pairs = isinstance(value, tuple) and len(items) == len(arguments)
        return pairs and all(fits(v, a) for v, a in zip(items, arguments, strict=True))
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if isinstance(value, bool):
        return issubclass(bool, kind) and kind is not int
    return isinstance(value, (int, float) if kind is float else kind)


def _shown(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _outputs(hint: Any) -> int:
    if typing.get_origin(hint) is not tuple:
        return 1
    arguments = typing.get_args(hint)
    return -1 if ... in arguments else len(arguments)


def _plain(value: Any) -> Any:
    """Lists as tuples and NumPy numbers as Python's, so that equal attributes compare and print alike."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, cast("Sequence[Any]", value)))
    return cast("np.generic[Any]", value).item() if isinstance(value, np.generic) else value
