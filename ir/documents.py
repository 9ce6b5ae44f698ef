"""Read what others wrote: regular files only, and JSON whose numbers and depth Python can hold."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

_DIGITS = 308
"""Digits of a whole number: one with more is larger than any float."""
_KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}  # fmt: skip


def open_regular(path: Path) -> BufferedReader:
    """A file to read bytes from. Raises OSError also for pipes, devices and sockets, which would be waited for."""
    # A pipe that nobody writes into would block before it could be asked what it is.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except ValueError as e:  # a zero in the name
        raise OSError(None, str(e), str(path)) from None
    kind = stat.S_IFMT(os.fstat(handle).st_mode)
    if kind != stat.S_IFREG:
        os.close(handle)
        raise OSError(None, f"is {_KINDS.get(kind, 'something else')}, not a file", str(path))
    return os.fdopen(handle, "rb")


def read_text(path: Path) -> str:
    """The text of a regular UTF-8 file. Raises OSError, or ValueError for other encodings."""
    with open_regular(path) as file:
        return file.read().decode("utf-8")


def parse_json(text: str | bytes, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """A JSON value. Raises ValueError for what is none, is nested too deep or has a number that no float holds.

    pairs: makes the value of an object from its keys and values.
    """
    try:
        return json.loads(text, parse_int=_whole, object_pairs_hook=pairs)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"{digits[:10]}... has {len(digits)} digits, and {_DIGITS} are the most")
    return int(digits)
