"""What parts of a JSON schema refer to, and a schema that is moved to another place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

NAMED = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
"""Keywords whose object has schemas under names, which are no keywords themselves."""

PLAIN = frozenset({"const", "enum", "default", "examples", "required"})
"""Keywords whose value is data and no schema."""


def references(schema: Any) -> Iterator[str]:
    """Every $ref in a schema."""
    for part in _parts(schema):
        said = part.get("$ref")
        if isinstance(said, str):
            yield said


def rebased(schema: Any, place: str) -> Any:
    """A schema that stands at `place`, a pointer such as /properties/a, of another one: it refers to its own parts.

    One with an $id of its own refers to them already.
    """
    if isinstance(schema, list):
        return [rebased(x, place) for x in cast("list[Any]", schema)]
    if not isinstance(schema, dict) or "$id" in schema:
        return cast("Any", schema)
    found: dict[str, Any] = {}
    for key, value in cast("dict[str, Any]", schema).items():
        if key == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
            found[key] = f"#{place}{value[1:]}"
        elif key in NAMED and isinstance(value, dict):
            found[key] = {name: rebased(x, place) for name, x in cast("dict[str, Any]", value).items()}
        else:
            found[key] = value if key in PLAIN else rebased(value, place)
    return found


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """A schema and all schemas inside it."""
    level: list[Any] = [schema]
    while level:
        inside: list[Any] = []
        for x in level:
            if isinstance(x, list):
                inside += cast("list[Any]", x)
            elif isinstance(x, dict):
                found = cast("dict[str, Any]", x)
                yield found
                for key, value in found.items():
                    named = key in NAMED and isinstance(value, dict)
                    inside += value.values() if named else () if key in PLAIN else (value,)
        level = inside
