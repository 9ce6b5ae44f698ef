"""Errors of text and of data preparation, and how a missing optional package is reported."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..ir.errors import MonographError


class CorpusError(MonographError):
    """A text is damaged, empty, or too short for what was asked."""


class DataError(CorpusError):
    """An input, a run folder or an engine of data preparation cannot be used as asked."""


class ShardError(DataError):
    """A shard is missing, truncated, or does not hold what its header says."""


def need(module: str, package: str, extra: str, why: str) -> ModuleType:
    """Import an optional module. Raises DataError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as e:
        if e.name is None or e.name.split(".")[0] != module.split(".")[0]:
            raise
        raise DataError(
            f"{why} needs the package {package}, which is not installed",
            hint=f'python -m pip install "monograph[{extra}]"',
        ) from None
