"""Errors of generation."""

from __future__ import annotations

from ..ir.errors import MonographError, RuntimeInputError


class GenerationError(MonographError):
    """The model gave logits from which no token can be chosen."""


class QueueFullError(MonographError):
    """As many requests wait as the queue has places for."""


class DeadlineError(MonographError):
    """A request has not ended by its deadline."""


class ClosedError(MonographError):
    """A request came to a scheduler that drains or is closed, or was waiting when it closed."""


class SessionError(MonographError):
    """The session failed under the requests that were running; those that waited are served by what follows."""


class GrammarError(RuntimeInputError):
    """A schema, regex or grammar that is none, is too large, or that a text cannot follow. place: where in it."""
