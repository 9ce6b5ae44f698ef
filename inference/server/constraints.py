"""Answers that must fit a JSON schema."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .errors import HttpError
from .service import Service


async def constraint_of(service: Service, schema: dict[str, Any], param: str) -> Callable[[], Any]:
    """Makes constraints to a schema, one for each choice. Raises HttpError 400 for one that cannot be held to."""
    raise HttpError(400, "not yet")
