"""One error family: place, what went wrong, the numbers, and what to do if that is certain."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MonographError(Exception):
    """Base of every error raised on purpose.

    place: file:line or file path and tensor; details: one line per operand or fact; hint: only if certain.
    exit_code: of a command that ends with it.
    """

    exit_code: int = 1

    def __init__(self, what: str, *, place: str = "", details: Iterable[str] = (), hint: str = "") -> None:
        self.what, self.place, self.details, self.hint = what, place, tuple(details), hint
        lines = [f"{place}: {what}" if place else what]
        lines += [f"  {line}" for line in self.details]
        if hint:
            lines.append(f"  hint: {hint}")
        super().__init__("\n".join(lines))


class OpError(MonographError):
    """An op was given operands or attributes that its definition does not allow."""


class NotANumberError(OpError, TypeError):
    """A value of a graph was used as a number, a truth or an array, which it is not before the graph runs."""


class VerifyError(MonographError):
    """A graph breaks the rules of the IR; `details` lists every error."""


class ParseError(MonographError):
    """Text that is not a graph."""


class WeightsError(MonographError):
    """A checkpoint file or one of its tensors is damaged, missing or of the wrong shape."""


class ConfigError(MonographError):
    """A configuration has a key, a value or a combination that is not understood."""


class LoweringError(MonographError):
    """A backend has no way to express a node for the target that was asked for."""


class PassError(MonographError):
    """A pass broke the graph or changed what it computes."""


class WriteError(MonographError, OSError):
    """The system did not take what was to be written: a full disk, a limit of the process. strerror: why."""

    def __init__(self, cause: OSError, *, place: str) -> None:
        why = cause.strerror or str(cause)  # NumPy tells of a short write in words only.
        super().__init__(f"cannot be written: {why}", place=place)
        self.errno, self.strerror = cause.errno, why

    def __str__(self) -> str:
        return str(self.args[0])


class RuntimeInputError(MonographError):
    """Inputs given to a built model do not fit its contract."""


def check(condition: bool, what: str, *, hint: str = "") -> None:
    """Raise `OpError(what)` unless `condition`; the builder adds place and operands."""
    if not condition:
        raise OpError(what, hint=hint)


def unreadable(cause: Exception) -> str:
    """Why a file cannot be read: a missing one is said alike wherever it was looked for."""
    if isinstance(cause, FileNotFoundError):
        return "there is no such file"
    return f"cannot be read: {(cause.strerror if isinstance(cause, OSError) else None) or cause}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `, did you mean 'x'?` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
