"""Operands, attributes and outputs of an op, read from the signature of its `infer`."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .errors import MonographError, OpError, did_you_mean
from .tables import Table
from .value import Attributes, Value

if TYPE_CHECKING:
    from .op import Op


_SPELLED = {
    "attn_mask": "mask",
    "attention_mask": "mask",
    "axes": "permutation",
    "bias": "b",
    "dim": "axis",
    "dims": "permutation",
    "input": "x",
    "is_causal": "causal",
    "keepdim": "keepdims",
    "other": "y",
    "perm": "permutation",
    "size": "shape",
    "to": "dtype",
    "weight": "w",
}
"""What operands and attributes are called in PyTorch, NumPy and ONNX => here."""


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
                meant = _SPELLED.get(name, "")
                known = [*self.operands, *self.attributes]
                guess = f", did you mean {meant!r}?" if meant in known else did_you_mean(name, known)
                raise OpError(f"has no attribute {name!r}{guess}", hint=self._names())
        full = {k: _plain(given.get(k, default)) for k, default in self.attributes.items()}
        missing = [k for k, v in full.items() if v is inspect.Parameter.empty]
        if missing:
            raise OpError(f"attribute {missing[0]!r} is missing")
        return full

    def bind(self, args: Sequence[Any], kwargs: Attributes) -> tuple[list[Any], Attributes]:
        """Split a Python call into operands (optional ones filled with None) and attributes.

        Raises OpError for more operands than there are, and for one that is given twice.
        """
        operands = list(args)
        if len(operands) > len(self.operands) and not self.variadic:
            hint = "attributes are given by name; " * bool(self.attributes) + self._names()
            raise OpError(f"takes {_counted(len(self.operands))} but {len(operands)} were given", hint=hint)
        twice = next((name for name in self.operands[: len(operands)] if name in kwargs), None)
        if twice is not None:
            raise OpError(f"operand {twice!r} is given twice", hint=self._names())
        for name in self.operands[len(operands) :]:
            operands.append(kwargs.pop(name, None))
        return operands, kwargs

    def _names(self) -> str:
        operands = [*self.operands, *([f"*{self.variadic}"] if self.variadic else [])]
        attributes = f"; attributes: {', '.join(self.attributes)}" if self.attributes else "; no attributes"
        return f"operands: {', '.join(operands) or 'none'}{attributes}"

    def python(self, op: Op) -> inspect.Signature:
        """The signature of the op as a function on values, for people and editors."""
        several = op.elementwise and len(self.operands) > 1

        def typed(p: inspect.Parameter) -> inspect.Parameter:
            if p.kind is inspect.Parameter.KEYWORD_ONLY:
                return p.replace(annotation=_text(self.hints.get(p.name, Any)))
            number = (" | bool" if p.name in op.own_dtype else " | float") if several else ""
            return p.replace(annotation=_Text("Value" + number + (" | None" if p.default is None else "")))

        outputs = {1: "Value", -1: "tuple[Value, ...]"}.get(self.outputs)
        returned = outputs or f"tuple[{', '.join(['Value'] * self.outputs)}]"
        parameters = inspect.signature(op.infer).parameters.values()
        return inspect.Signature([typed(p) for p in parameters], return_annotation=_Text(returned))

    def check(self, operands: Sequence[Value | None], attributes: Attributes) -> None:
        """Raises OpError for a missing operand, for too many, and for an attribute of another type."""
        given = [*operands, *[None] * (len(self.operands) - len(operands))]
        for name, v in zip(self.operands, given, strict=False):
            if v is None and name not in self.optional:
                raise OpError(f"operand {name!r} is missing", hint=self._names())
        if not operands and self.variadic:
            raise OpError("takes at least one operand")
        if len(operands) > len(self.operands) and not self.variadic:
            raise OpError(f"takes {_counted(len(self.operands))} but {len(operands)} were given", hint=self._names())
        for name, value in attributes.items():
            hint = self.hints.get(name, Any)
            if not fits(value, hint):
                raise OpError(f"attribute {name} is {value!r}, expected {_shown(hint)}")


class _Text(str):
    """An annotation that is shown as it stands, without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _text(hint: Any) -> _Text:
    """An annotation as people write it: `int | Dim` for `Union[int, Dim]`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _Text(" | ".join(_text(a) for a in typing.get_args(hint)))
    if hint is type(None):
        return _Text("None")
    arguments = typing.get_args(hint)
    if arguments and isinstance(origin := typing.get_origin(hint), type):
        return _Text(f"{origin.__name__}[{', '.join('...' if a is ... else _text(a) for a in arguments)}]")
    return _Text(hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", ""))


def _counted(operands: int) -> str:
    return f"{operands} operand{'s' * (operands != 1)}"


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
    """Lists and arrays as tuples and NumPy numbers as Python's, so that equal attributes compare and print alike."""
    if isinstance(value, np.ndarray):
        value = cast("Any", value).tolist()
    if isinstance(value, Table):
        return value
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, cast("Sequence[Any]", value)))
    return cast("np.generic[Any]", value).item() if isinstance(value, np.generic) else value
