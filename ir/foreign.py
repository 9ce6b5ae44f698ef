"""What functions of NumPy and PyTorch get that are called with a value of a graph: a typed error that names the op."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from . import ops
from .builder import place_of
from .errors import NotANumberError, did_you_mean
from .value import Value

_REFLECTED = {
    "add": "__radd__",
    "subtract": "__rsub__",
    "multiply": "__rmul__",
    "divide": "__rtruediv__",
    "floor_divide": "__rfloordiv__",
    "remainder": "__rmod__",
    "power": "__rpow__",
    "less": "__gt__",
    "less_equal": "__ge__",
    "greater": "__lt__",
    "greater_equal": "__le__",
    "bitwise_and": "__rand__",
    "bitwise_or": "__ror__",
    "bitwise_xor": "__rxor__",
}
"""Functions that NumPy's numbers call for an operator whose right side is a value, and the method that is meant."""

_HERE = {
    "absolute": "ops.abs",
    "arange": "ops.iota",
    "astype": "x.cast(dtype)",
    "broadcast_to": "ops.expand",
    "cat": "ops.concat",
    "concatenate": "ops.concat",
    "conv1d": "ops.conv1d",
    "divide": "ops.div",
    "einsum": "ops.matmul",
    "flip": "x[::-1]",
    "multiply": "ops.mul",
    "ndim": "x.rank",
    "negative": "ops.neg",
    "not_equal": "x.ne(y)",
    "equal": "x.eq(y)",
    "permute": "x.transpose",
    "power": "ops.pow",
    "scaled_dot_product_attention": "ops.attention",
    "size": "x.shape",
    "squeeze": "x.reshape",
    "subtract": "ops.sub",
    "to": "x.cast(dtype)",
    "type": "x.cast(dtype)",
    "unsqueeze": "x[:, None]",
    "view": "x.reshape",
}
"""Names in NumPy and PyTorch of what is called otherwise here."""


def reflected(x: Value, function: Any, method: str, inputs: tuple[Any, ...]) -> Callable[[Any], Value] | None:
    """The method of `x` for an operator of NumPy whose right side it is; None for any other call."""
    if method != "__call__" or len(inputs) != 2 or inputs[1] is not x or isinstance(inputs[0], Value):
        return None
    name = _REFLECTED.get(function.__name__)
    return getattr(x, name) if name else None


def refused(library: str, function: Any, given: Iterable[Any]) -> NotANumberError:
    """The error for a function of another library that was called with values."""
    name = getattr(function, "__name__", str(function))
    flat = [v for x in given for v in (cast("list[Any]", x) if isinstance(x, (list, tuple)) else [x])]
    value = next((v for v in flat if isinstance(v, Value)), None)
    place = str(place_of(value.graph, beyond=(library,))) if value is not None else ""
    what = f"{library}'s {name} was called with a value of a graph, which has no numbers before it runs"
    return NotANumberError(what, place=place, details=[] if value is None else [repr(value)], hint=_here(name))


def unknown_method(name: str, known: Iterable[str]) -> str:
    """What an AttributeError of a value says."""
    what = f"a value of a graph has no attribute {name!r}"
    if name.startswith("_"):
        return what
    meant = _meant(name)
    return f"{what}: use {meant}" if meant else what + did_you_mean(name, [k for k in known if not k.startswith("_")])


def _here(name: str) -> str:
    meant = _meant(name.strip("_"))
    return f"use {meant}" if meant else "ops lists what there is: dir(monograph.ops)"


def _meant(name: str) -> str:
    if name in _HERE:
        return _HERE[name]
    return f"ops.{name}" if name in dir(ops) else ""
