"""The error of a run that went wrong."""

from __future__ import annotations

from typing import Any

from ..ir.errors import MonographError


class TrainingError(MonographError):
    """A run stopped early. `model` holds the last good weights, those of the last evaluation."""

    model: Any = None
