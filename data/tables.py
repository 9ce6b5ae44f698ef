"""Settings from TOML: tables become frozen dataclasses, and every field is checked by name and type."""

from __future__ import annotations

import math
import reprlib
import tomllib
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeGuard, get_args, get_origin, get_type_hints

from ..ir.errors import ConfigError, did_you_mean, unreadable

_PLAIN: dict[type, tuple[type, str]] = {
    str: (str, "a text"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    bool: (bool, "true or false"),
}
"""What is taken for a value of each type, and its name in messages. NumPy's numbers are numbers too."""


_MOST = 2**63 - 1
"""Largest whole number of any setting: more cannot be counted."""


def read_toml(path: str | Path) -> dict[str, Any]:
    """The values of a TOML file. Raises ConfigError naming the file, or file, line and column."""
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(unreadable(e), place=str(path)) from None
    except RecursionError:
        raise ConfigError("is not TOML: it is nested too deep", place=str(path)) from None
    except ValueError as e:  # of the encoding, of the form, and of numbers with thousands of digits
        raise ConfigError(f"is not TOML: {e}", place=str(path)) from None


def changes_of(texts: Sequence[str]) -> dict[str, Any]:
    """Nested tables from texts such as `train.steps=100`; a value that is not TOML is a text.

    Raises ConfigError for a text of another form.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        *outer, key = [part.strip() for part in name.split(".")]
        if not (equals and outer and key and all(outer)):
            raise ConfigError(f"{text!r} is not a change", hint="write table.field=value, as in train.steps=100")
        try:
            change: Any = tomllib.loads(f"x = {value}")["x"]
        except (ValueError, RecursionError):
            change = value.strip()
        change = {key: change}
        for table in reversed(outer):
            change = {table: change}
        found = merged(found, change)
    return found


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables with those of `changes` over them; what should be a table but is none stays, to be refused."""
    found = dict(values)
    for name, new in changes.items():
        old: Any = found.get(name, {})
        if is_table(new):
            found[name] = merged(old, new) if is_table(old) else old
        else:
            found[name] = new
    return found


def is_table(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def is_list(value: Any) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    return isinstance(value, (list, tuple))


def typed_fields(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by field of a dataclass, as plain Python values. Raises ConfigError for a value of another type."""
    kinds = get_type_hints(kind)
    return {
        k: None if v is None and NoneType in get_args(kinds[k]) else _typed(k, v, kinds[k]) for k, v in values.items()
    }


def tables(values: Mapping[str, Any], kinds: Mapping[str, type]) -> dict[str, dict[str, Any]]:
    """Fields by table, each checked against the dataclass of its table; tables that are not given are empty.

    Raises ConfigError naming a table or field that there is not, or a value of another type.
    """
    for name, value in values.items():
        if name not in kinds:
            raise ConfigError(f"no table is called [{name}]{did_you_mean(name, kinds)}")
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {value!r}, expected a table [{name}]")
    return {name: _table(name, kind, values.get(name, {})) for name, kind in kinds.items()}


def _table(name: str, kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    known = get_type_hints(kind)
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            meant = did_you_mean(key, known)
            hint = "" if meant else f"the fields are {', '.join(sorted(known))}"
            raise ConfigError(f"[{name}] has no field {key!r}{meant}", hint=hint)
        found[key] = _typed(f"{name}.{key}", value, known[key])
    return found


def _typed(name: str, value: Any, kind: Any) -> Any:
    """A value of the type `kind`. Raises ConfigError naming the field."""
    if get_origin(kind) is UnionType:
        (kind,) = (k for k in get_args(kind) if k is not NoneType)
    if get_origin(kind) is tuple:
        return _typed_list(name, value, get_args(kind))
    if get_origin(kind) is dict:
        if not is_table(value):
            raise ConfigError(f"{name} is {value!r}, expected a table")
        return dict(value)
    expected, words = _PLAIN[kind]
    if not isinstance(value, expected) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name} is {reprlib.repr(value)}, expected {words}")
    most = math.inf if isinstance(value, float) else _MOST
    if kind in (int, float) and not -most <= value <= most:  # Of nan nothing is true.
        raise ConfigError(f"{name} is {reprlib.repr(value)}, expected {words} of at most {most:,}")
    return kind(value)


def _typed_list(name: str, value: Any, elements: tuple[Any, ...]) -> tuple[Any, ...]:
    """elements: the types of the tuple; of one of any length, the type of all and an ellipsis."""
    number = None if elements[-1] is Ellipsis else len(elements)
    if not is_list(value) or (number is not None and len(value) != number):
        raise ConfigError(f"{name} is {value!r}, expected a list{f' of {number}' if number else ''}")
    return tuple(_typed(f"{name}[{i}]", v, elements[0]) for i, v in enumerate(value))


def one_of(value: str, known: Collection[str], name: str) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(known)}{did_you_mean(value, known)}")


def between(value: float, low: float, high: float, name: str) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}, expected {low} to {high}")


def some(value: tuple[str, ...], name: str, what: str) -> None:
    if not value:
        raise ConfigError(f"{name} is empty, expected {what}")
