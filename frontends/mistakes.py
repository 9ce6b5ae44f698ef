"""What goes wrong in people's own Python, as one error: the kind, their file and line, and the text of the line."""

from __future__ import annotations

import builtins
import contextlib
import linecache
import os
import sys
import traceback
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from ..ir.errors import MonographError, did_you_mean


class ModelFileError(MonographError):
    """An exception of Python in the file of a model. `__cause__` is the exception."""


@contextlib.contextmanager
def in_function(function: Callable[..., Any]) -> Generator[None]:
    """An exception of Python in a model function becomes a ModelFileError with the place."""
    try:
        yield
    except Exception as e:
        raise mistake_of(e, Path(function.__code__.co_filename)) from e


def mistake_of(error: BaseException, path: Path) -> MonographError:
    """The error to raise for what happened while a file, or a function in it, ran: a MonographError stays what it is,
    but has the place.
    """
    frame, number = _deepest(error, path)
    place = f"{path.name}:{number}" if frame is None and number else str(path)
    details: list[str] = []
    if frame is not None:
        file = frame.f_code.co_filename
        place = f"{Path(file).name}:{number}"
        details = [line] if (line := linecache.getline(file, number, frame.f_globals).strip()) else []
    if isinstance(error, MonographError):
        if error.place:
            return error
        return _placed(error, place, details)
    if isinstance(error, SyntaxError) and error.lineno is not None:
        name = Path(error.filename or path).name
        text = (error.text or "").strip()
        return ModelFileError(f"{type(error).__name__}: {error.msg}", place=f"{name}:{error.lineno}", details=[text])
    return ModelFileError(_said(error, frame), place=place, details=details)


def line_of(function: Callable[..., Any]) -> tuple[str, list[str]]:
    """(file and line where a function begins, the text of the line, if it can be read)."""
    code = function.__code__
    number = code.co_firstlineno
    for n in range(number, number + 50):  # Decorators stand before it, and count as its beginning.
        line = linecache.getline(code.co_filename, n, function.__globals__).strip()
        if line.startswith(("def ", "async def ")):
            return f"{Path(code.co_filename).name}:{n}", [line]
    line = linecache.getline(code.co_filename, number, function.__globals__).strip()
    return f"{Path(code.co_filename).name}:{number}", [line] if line else []


def _deepest(error: BaseException, path: Path) -> tuple[FrameType | None, int]:
    """The innermost frame of the traceback that is in the file, or beside it, and its line."""
    folder = f"{path.parent}{os.sep}"
    found: tuple[FrameType | None, int] = (None, 0)
    for frame, number in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if file == str(path) or (file.startswith(folder) and "site-packages" not in file and not _ours(file)):
            found = frame, number
    return found


def _ours(file: str) -> bool:
    """Whether a file is of this package, but for the families, which are models like any other."""
    root = Path(__file__).parent.parent
    return Path(file).is_relative_to(root) and not Path(file).is_relative_to(Path(__file__).parent / "models")


def _placed(error: MonographError, place: str, details: Iterable[str]) -> MonographError:
    """The same error with a place. What its class keeps beside the message stays."""
    made = MonographError.__new__(type(error))
    MonographError.__init__(made, error.what, place=place, details=[*details, *error.details], hint=error.hint)
    made.__dict__ |= {k: v for k, v in vars(error).items() if k not in vars(made)}
    return made


def _said(error: BaseException, frame: FrameType | None) -> str:
    kind, text = type(error).__name__, str(error)
    if isinstance(error, SystemExit):
        return f"sys.exit({'' if error.code is None else repr(error.code)}) is called"
    if isinstance(error, RecursionError):
        name = "" if frame is None else f": {frame.f_code.co_name} calls itself without an end"
        return f"{kind}{name or f': {text}'}"
    if isinstance(error, KeyError):
        text = f"there is no {text}"
    return f"{kind}: {text}{_meant(error, frame)}" if text else kind


def _meant(error: BaseException, frame: FrameType | None) -> str:
    """Which name was meant, where one that is known looks like it."""
    if isinstance(error, AttributeError) and error.name and error.obj is not None:
        return did_you_mean(error.name, dir(error.obj))
    if isinstance(error, NameError) and error.name and frame is not None:
        return did_you_mean(error.name, {*frame.f_locals, *frame.f_globals, *dir(builtins)})
    if isinstance(error, ModuleNotFoundError) and error.name:
        return did_you_mean(error.name, [*sys.stdlib_module_names, *sys.modules])
    return ""
