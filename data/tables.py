"""Settings from TOML: tables become frozen dataclasses, and every field is checked by name and type."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ..ir.errors import ConfigError, did_you_mean

_KINDS: dict[str, tuple[type, str]] = {
    "str": (str, "a text"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool, "true or false"),
}
_PLAIN: dict[str, Callable[[Any], Any]] = {"int": int, "float": float}
"""NumPy's numbers are numbers too, but neither JSON nor TOML holds them."""


def read_toml(path: str | Path) -> dict[str, Any]:
    """The values of a TOML file. Raises ConfigError naming the file, or file, line and column."""
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"cannot be read: {e.strerror}", place=str(path)) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
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
        except tomllib.TOMLDecodeError:
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
        old = found.get(name, {})
        if isinstance(new, Mapping):
            found[name] = merged(old, new) if isinstance(old, Mapping) else old
        else:
            found[name] = new
    return found


def typed_fields(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by field of a dataclass, as plain Python values. Raises ConfigError for a value of another type."""
    kinds = {f.name: str(f.type) for f in dataclasses.fields(kind)}
    return {k: None if v is None and kinds[k].endswith("None") else _typed(k, v, kinds[k]) for k, v in values.items()}


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
    known = {f.name: str(f.type) for f in dataclasses.fields(kind)}
    found: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"[{name}] has no field {key!r}{did_you_mean(key, known)}")
        found[key] = _typed(f"{name}.{key}", value, known[key])
    return found


def _typed(name: str, value: Any, kind: str) -> Any:
    kind = kind.removesuffix(" | None")
    if kind.startswith("tuple["):
        element, _, rest = kind.removeprefix("tuple[").removesuffix("]").partition(", ")
        number = None if rest == "..." else 2
        if not isinstance(value, (list, tuple)) or (number is not None and len(value) != number):
            raise ConfigError(f"{name} is {value!r}, expected a list{f' of {number}' if number else ''}")
        return tuple(_typed(f"{name}[{i}]", v, element) for i, v in enumerate(value))
    if kind.startswith("dict"):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name} is {value!r}, expected a table")
        return dict(value)
    expected, words = _KINDS[kind]
    if not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool"):
        raise ConfigError(f"{name} is {value!r}, expected {words}")
    return _PLAIN[kind](value) if kind in _PLAIN else value


def one_of(value: str, known: tuple[str, ...], name: str) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}, expected one of {', '.join(known)}{did_you_mean(value, known)}")


def between(value: float, low: float, high: float, name: str) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}, expected {low} to {high}")


def some(value: tuple[str, ...], name: str, what: str) -> None:
    if not value:
        raise ConfigError(f"{name} is empty, expected {what}")
