"""Errors of generation."""

from __future__ import annotations

from ..ir.errors import MonographError


class GenerationError(MonographError):
    """The model gave logits from which no token can be chosen."""
