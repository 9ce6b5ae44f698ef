"""Text that calibration and quality read: given as it is, or a file, of which no more is read than is used."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from .data.errors import CorpusError
from .ir.documents import open_regular
from .ir.errors import ConfigError, unreadable

Text = str | Path | Sequence[str]
"""A text, several, or a file with one."""

_WHOLE = 1 << 21
"""Bytes of a file that is read as a whole. Of a longer one only those pieces are read that are used."""

_WIDEST = 4
"""Most bytes of a character in UTF-8."""

_MARK = "\ufeff"

_NAME = re.compile(r"\S*[/\\]\S*|\S+\.[A-Za-z][A-Za-z0-9]{0,4}")
"""What is the name of a file rather than a text: no white space, and a separator or an ending."""


def beginning(text: Text, characters: int) -> str:
    """The first characters of a text. Raises ConfigError where there is none, CorpusError for a file that is none."""
    path = _file(text)
    if path is None:
        return _some(_joined(text)[:characters], text)
    return _some(_part(path, 0, characters * _WIDEST)[:characters], text)


def pieces(text: Text, width: int, count: int, skipped: int) -> list[str]:
    """At most `count` pieces of `width` characters from all over a text, but for its first `skipped` if it is long.

    Errors as for `beginning`.
    """
    path = _file(text)
    if path is None or (size := _size(path)) <= _WHOLE:
        joined = _some(_joined(text) if path is None else _part(path, 0, _WHOLE), text)
        return [joined[at : at + width] for at in _places(len(joined), width, count, skipped)]
    places = _places(size, width * _WIDEST, count, skipped * _WIDEST)
    found = [_part(path, at, width * _WIDEST)[:width] for at in places]
    _some("".join(found), text)
    return found


def named(text: Text) -> str:
    """The file of a text, or its first words."""
    path = _file(text)
    return path.name if path is not None else repr(" ".join(_joined(text)[:255].split()[:6]))


def _places(length: int, width: int, count: int, skipped: int) -> list[int]:
    """Where pieces begin, each once."""
    begin = skipped if length > 4 * skipped else 0
    starts = np.linspace(begin, max(begin, length - width), count).astype(int)
    return list(dict.fromkeys(starts.tolist()))


def _file(text: Text) -> Path | None:
    """The file that a text is in. Raises ConfigError for the name of one that is not there."""
    if isinstance(text, Path):
        return text
    if not isinstance(text, str) or len(text) >= 4096 or "\n" in text:
        return None
    if os.path.isfile(text):  # noqa: PTH113 - Path.is_file raises for a text that is too long to be a name.
        return Path(text)
    if _NAME.fullmatch(text.strip()):
        raise ConfigError(f"there is no file {text.strip()!r}, and as a text it is none", place="text")
    return None


def _joined(text: Text) -> str:
    given: Any = text  # callers without types give anything
    several = isinstance(given, Sequence) and not isinstance(given, str)
    parts: list[Any] = list(cast("Sequence[Any]", given)) if several else [given]
    wrong = next((type(p).__name__ for p in parts if not isinstance(p, str)), None)
    if wrong is not None:
        raise ConfigError(f"a text holds {wrong}, expected characters, a file, or a list of texts", place="text")
    return "\n\n".join(parts)


def _some(found: str, text: Text) -> str:
    if not found.strip():
        raise ConfigError("there is no text to read", place=str(text) if isinstance(text, Path) else "")
    return found


def _size(path: Path) -> int:
    try:
        with open_regular(path) as file:
            return file.seek(0, 2)
    except OSError as e:
        raise CorpusError(unreadable(e), place=str(path)) from None


def _part(path: Path, start: int, length: int) -> str:
    """Characters from a byte of a UTF-8 file on, without a mark of byte order; a cut one at either end is left out.

    Raises CorpusError with the offset of a byte that no text in UTF-8 has.
    """
    try:
        with open_regular(path) as file:
            file.seek(start)
            data = file.read(length)
            whole = len(data) < length or not file.read(1)
    except OSError as e:
        raise CorpusError(unreadable(e), place=str(path)) from None
    skip = next((i for i, byte in enumerate(data[:_WIDEST]) if byte & 0xC0 != 0x80), 0) if start else 0
    data = data[skip:]
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        if whole or e.end < len(data) or len(data) - e.start >= _WIDEST:
            shown = data[e.start : e.end].hex(" ")
            what = f"is not UTF-8 at byte {start + skip + e.start} ({shown}): {e.reason}"
            raise CorpusError(what, place=str(path)) from None
        text = data[: e.start].decode("utf-8")
    if "\0" in text:
        at = start + skip + len(text[: text.index("\0")].encode())
        raise CorpusError(f"has a zero at byte {at}: is it a binary file, or text in UTF-16?", place=str(path))
    return text.removeprefix(_MARK) if not start else text
