"""What a file of a checkpoint says: every entry is used, noted with a reason, or refused by name; none is dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ir.errors import ConfigError, MonographError, did_you_mean


@dataclass(frozen=True)
class Note:
    """An entry that changes nothing that the model computes here. place: the file. why: the reason, as a clause."""

    place: str
    key: str
    value: Any
    why: str

    def __str__(self) -> str:
        return f"{Path(self.place).name}: {self.key} = {shown(self.value)}: {self.why}"


class Entries:
    """The entries of one file, of which each must be accounted for before `close`.

    A reader takes what it needs with `use`, says with `note` why an entry does not matter, and with `refuse` why one
    cannot be followed. `close` raises one error that lists what was refused and what nobody took.
    """

    def __init__(self, entries: Mapping[str, Any], place: str | Path, what: str = "key") -> None:
        self.entries, self.place, self.what = entries, str(place), what
        self.notes: list[Note] = []
        self.problems: list[str] = []
        self._open = dict.fromkeys(entries)

    def use(self, key: str, default: Any = None) -> Any:
        """The value of an entry, which is followed from here on; `default` where the file has none."""
        self._open.pop(key, None)
        return self.entries.get(key, default)

    def note(self, key: str, why: str) -> None:
        """Say why an entry changes nothing; nothing happens if the file does not have it, or another reader took it."""
        if key in self._open:
            del self._open[key]
            self.notes.append(Note(self.place, key, self.entries[key], why))

    def refuse(self, key: str, why: str) -> None:
        """Say why an entry cannot be followed: it is in the error of `close`."""
        self._open.pop(key, None)
        self.problems.append(f"{self.what} {key!r} = {shown(self.entries.get(key))}: {why}")

    def lack(self, key: str, why: str = "is missing") -> None:
        """Say that an entry is not there and must be: it is in the error of `close`, with the name it may have."""
        self.problems.append(f"{self.what} {key!r} {why}{did_you_mean(key, self.entries)}")

    @property
    def left(self) -> tuple[str, ...]:
        """Entries that nobody has accounted for yet, in the order of the file."""
        return tuple(self._open)

    def close(
        self, known: Iterable[str] = (), *, title: str = "", error: Callable[..., MonographError] = ConfigError
    ) -> tuple[Note, ...]:
        """The notes. known: names for a hint at a misspelled entry. Raises `error` listing every problem at once."""
        names = list(known)
        unknown = [f"unknown {self.what} {k!r} = {shown(self.entries[k])}{did_you_mean(k, names)}" for k in self._open]
        problems = [*self.problems, *unknown]
        if problems:
            raise error(title or f"has {len(problems)} problems", place=self.place, details=problems)
        return tuple(self.notes)


def summary(notes: Sequence[Note]) -> str:
    """How many notes there are, in one line; empty where there is none."""
    return f"{len(notes)} settings of the checkpoint change nothing here (--notes lists them)" if notes else ""


def shown(value: Any) -> str:
    """A value in one short line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
