"""Answers that must fit a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from ..constraint import Constraint
from ..errors import GrammarError
from ..grammar import Asked
from .errors import HttpError
from .references import references
from .service import Service


async def constraint_of(service: Service, schema: dict[str, Any], param: str) -> Callable[[], Constraint]:
    """Makes constraints to a schema, one for each choice. Raises HttpError 400 for one that cannot be held to.

    A schema is compiled once, beside the loop.
    """
    check_schema(schema, service, param)
    ends = frozenset(service.ends)

    def make() -> Constraint:
        return service.grammars.constraint(Asked("schema", schema), ends)

    try:
        Asked("schema", schema).check()
        await service.thread(make)
    except GrammarError as e:
        raise HttpError(400, f"{param}: {e}", param=param, code="invalid_schema") from None
    return make


def check_schema(schema: dict[str, Any], service: Service, param: str) -> None:
    """Raise HttpError 400 for a schema that is larger or deeper than the limits, or refers to another document."""
    limits, depth = service.limits, 0
    level: list[Any] = [schema]
    if len(json.dumps(schema)) > limits.schema:
        raise HttpError(400, f"{param} has a schema of more than {limits.schema:,} bytes", param=param)
    while level:
        depth += 1
        if depth > limits.depth:
            raise HttpError(400, f"{param} has a schema nested more than {limits.depth} deep", param=param)
        inside: list[Any] = []
        for x in level:
            if isinstance(x, dict):
                inside += cast("dict[str, Any]", x).values()
            elif isinstance(x, list):
                inside += cast("list[Any]", x)
        level = [x for x in inside if isinstance(x, dict | list)]
    if any(not ref.startswith("#") for ref in references(schema)):
        raise HttpError(400, f"{param} refers to another document by $ref", param=param)
