"""Why a program of PyTorch has no counterpart in the IR."""

from __future__ import annotations

from ...ir.errors import MonographError, OpError


class NotImportableError(MonographError):
    """A module or exported program that the IR cannot express; `details` lists every op with its place."""


class UnknownFormError(OpError):
    """An op is known, but not with these arguments."""
