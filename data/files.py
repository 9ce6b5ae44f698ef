"""Folders that appear whole or not at all, and small JSON files that say what is in them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Any

from ..ir.documents import parse_json, read_text
from ..ir.errors import unreadable
from .errors import DataError


@contextlib.contextmanager
def whole_folder(target: Path) -> Generator[Path, None, None]:
    """A folder to write into that is called `target` once the block ends; nothing stays of one that failed.

    When two attempts at the same task end, the first one stands: both wrote the same.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    work = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
    work.mkdir()
    try:
        yield work
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """A JSON file that is on disk before it has its name."""
    work = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with work.open("w", encoding="utf-8") as f:
            json.dump(value, f, indent=1, ensure_ascii=False)
            f.flush()
            os.fsync(f.fileno())
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """A JSON value. Raises DataError naming the file."""
    try:
        return parse_json(read_text(path))
    except OSError as e:
        raise DataError(unreadable(e), place=str(path)) from None
    except ValueError as e:
        raise DataError(f"is not JSON: {e}", place=str(path)) from None


@contextlib.contextmanager
def exclusive(folder: Path) -> Generator[None, None, None]:
    """Keep a second process out of a run folder. The lock goes with its process, however that ends.

    Raises DataError if another process works there. Systems without `fcntl` have no such lock.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError("another process works in this run folder", place=str(folder)) from None
        yield


def remove_unfinished(folder: Path) -> None:
    """Take away what a run that was killed left under temporary names."""
    for left in [*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")]:
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()
