"""The configuration of a family: typed fields under their keys in config.json and GGUF, and what else may be there."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, dataclass_transform

from ..ir.errors import ConfigError, did_you_mean
from .entries import Entries, shown
from .harmless import EVERY_CONFIG, FOLLOWED, REFUSED
from .shown import config_fields, config_table


def key(hf: str, default: Any = dataclasses.MISSING, *, gguf: str | None = None, also: tuple[str, ...] = ()) -> Any:
    """A config field read from `hf` in config.json, or from `<architecture>.<gguf>` in a GGUF file.

    also: other names in config.json for the same thing.
    """
    return field(default=default, metadata={"hf": hf, "gguf": gguf, "also": also})


MOST_LAYERS = 4096
"""More than any model has; each layer is written out in its graph, so that a wrong number would take for ever."""


@dataclass_transform(frozen_default=True, field_specifiers=(key, field))
@dataclass(frozen=True, repr=False)
class Config:
    """Base of a family's configuration; subclasses are frozen dataclasses with only their own fields.

    Used directly, it is the config of a model without settings.
    """

    noted: ClassVar[Mapping[str, str]] = {}
    """Keys of config.json that the reference reads for this family and that change nothing here, with the reason."""
    turning: ClassVar[tuple[str, ...]] = ()
    """Settings of rotary positions that the family itself reads, for any type but the default one."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, repr=False)(cls)

    def __repr__(self) -> str:
        """`Name(field=value, ...)` on one line, or on a line a field where that is long."""
        fields = config_fields(self)
        line = f"{type(self).__name__}({', '.join(fields)})"
        return line if len(line) <= 100 else f"{type(self).__name__}(\n  " + ",\n  ".join(fields) + ",\n)"

    def _repr_html_(self) -> str:
        return config_table(self).html()

    @classmethod
    def keys(cls) -> tuple[str, ...]:
        """The names of the fields in config.json."""
        return tuple(f.metadata.get("hf", f.name) for f in dataclasses.fields(cls))  # type: ignore[arg-type]

    @classmethod
    def needed(cls) -> tuple[str, ...]:
        """The names of those that have no default."""
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        nothing = dataclasses.MISSING
        return tuple(f.metadata.get("hf", f.name) for f in fields if f.default is nothing is f.default_factory)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], place: str = "") -> Self:
        """Make the config from settings under their names in config.json. Raises ConfigError listing every unknown
        key, missing key and wrong type."""
        entries = Entries(settings, place)
        values = cls.taken(entries)
        cls.note_harmless(entries)
        entries.close(cls.keys(), title=f"config of {cls.__name__.lower()} is not understood")
        return cls(**values)

    @classmethod
    def taken(
        cls, entries: Entries, renamed: Mapping[str, str] | None = None, defaults: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Values of the fields that are given, by field name; problems are collected in `entries`.

        renamed: {another key: the key of a field that it means}; if both are given, the other key wins, as in the
        reference implementation. defaults: for fields without one, by their keys.
        """
        hints, values = typing.get_type_hints(cls), dict[str, Any]()
        for f in dataclasses.fields(cls):  # type: ignore[arg-type]
            name = f.metadata.get("hf", f.name)
            others = [*f.metadata.get("also", ()), *(k for k, v in (renamed or {}).items() if v == name), name]
            said = [k for k in dict.fromkeys(others) if k == name or entries.entries.get(k) is not None]
            key, *rest = [k for k in said if k in entries.left] or [name]
            for k in rest:
                entries.note(k, f"{key} means the same and counts")
            if key in entries.entries:
                value = entries.use(key)
                if not _fits(value, hints[f.name]):
                    entries.problems.append(f"{key!r} is {shown(value)}, expected {_named(f.type)}")
                elif _too_deep(f.name, value):
                    entries.problems.append(f"{key!r} is {shown(value)}, and {MOST_LAYERS} layers are the most")
                values[f.name] = value
            elif name in cls.needed():
                if name not in (defaults or {}):
                    entries.lack(name)
                else:
                    values[f.name] = (defaults or {})[name]
        return values

    @classmethod
    def note_harmless(cls, entries: Entries) -> None:
        """Account for keys that are known to change nothing, or that other code reads."""
        for key in entries.left:
            if key in FOLLOWED:
                entries.use(key)
            elif key in cls.noted or key in EVERY_CONFIG:
                entries.note(key, cls.noted.get(key) or EVERY_CONFIG[key])
            elif key in REFUSED and entries.entries[key]:
                entries.refuse(key, REFUSED[key])
            elif key in REFUSED:
                entries.note(key, "it switches nothing on")

    @classmethod
    def of(cls, **settings: Any) -> Self:
        """Make the config from values of its fields. Raises ConfigError as `from_dict` does."""
        return cls(**cls._checked(settings))

    def changed(self, **changes: Any) -> Self:
        """A copy with other values for some fields. Raises ConfigError for an unknown field or a wrong type."""
        self._checked({**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, **changes})  # type: ignore[arg-type]
        return dataclasses.replace(self, **changes)  # type: ignore[type-var] # pyright: ignore[reportArgumentType]

    @classmethod
    def _checked(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Values by the names of fields, as they are. Raises ConfigError naming every one that does not fit."""
        fields, hints = {f.name: f for f in dataclasses.fields(cls)}, typing.get_type_hints(cls)  # type: ignore[arg-type]
        defaults = {k: f.default for k, f in fields.items() if f.default is not dataclasses.MISSING}
        problems = [f"no field is called {k!r}{did_you_mean(k, fields)}" for k in settings if k not in fields]
        problems += [
            f"{k} is missing"
            for k, f in fields.items()
            if k not in settings and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        problems += [
            f"{k} is {v!r}, expected {_named(fields[k].type)}"
            for k, v in {**defaults, **settings}.items()
            if k in fields and not _fits(v, hints[k])
        ]
        problems += [
            f"{k} is {shown(v)}, and {MOST_LAYERS} layers are the most" for k, v in settings.items() if _too_deep(k, v)
        ]
        if problems:
            raise ConfigError(f"{cls.__name__} cannot be made", details=problems)
        return settings

    def to_dict(self) -> dict[str, Any]:
        """The fields under their config.json keys."""
        return {f.metadata.get("hf", f.name): getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]


def _too_deep(field: str, value: Any) -> bool:
    """Whether a field counts more layers than a graph can be written out for."""
    return field.endswith("layers") and isinstance(value, int) and value > MOST_LAYERS


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, as far as classes tell; numbers without a fraction are floats, too."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    for option in typing.get_args(hint) if origin in (typing.Union, types.UnionType) else (hint,):
        plain = typing.get_origin(option) or option
        if plain is typing.Any or not isinstance(plain, type):
            return True
        if plain is float and isinstance(value, int) and not isinstance(value, bool):
            return True
        if isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
            return True
    return False


def _named(annotation: Any) -> str:
    """An annotation as it was written."""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
