"""Errors of training: a text that cannot be used, and a run that went wrong."""

from __future__ import annotations

from typing import Any

from ..ir.errors import MonographError


class CorpusError(MonographError):
    """A text is damaged, empty, or too short for what was asked."""


class TrainingError(MonographError):
    """A run stopped early. `model` holds the last good weights, those of the last evaluation."""

    model: Any = None
