"""One run at a time in a folder: a lock of the operating system, which ends with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Callable, Generator
from pathlib import Path

from filelock import FileLock, Timeout

from ..ir.errors import ConfigError
from ..ir.silent import silent
from .errors import TrainingError

LOCK = ".lock"
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})
_READS = 10
"""Times that the name of the holder is looked for: it writes it just after it has the lock."""


@contextlib.contextmanager
def held(folder: Path, note: Callable[[str], None] | None = None) -> Generator[None]:
    """Keep every other process out of the folder of a run, which is made if it is not there, until the block ends.

    A thread that holds it may ask again. note: told where the file system has no locks; then nothing is kept out.
    Raises ConfigError naming folder, process and host if another run is in it, TrainingError if it cannot be written.
    """
    path = folder.resolve() / LOCK
    lock = FileLock(path, blocking=False, is_singleton=True, on_acquired=_sign)
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        _take(lock, folder, note or silent)
        yield
    finally:
        # Only the holder removes the file, and before it lets go: whoever has it open then notices and makes another.
        if lock.lock_counter == 1:
            path.unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):
            for p in made:
                p.rmdir()


def _take(lock: FileLock, folder: Path, note: Callable[[str], None]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        what = f"is in use by another run, {_holder(Path(lock.lock_file))}"
        hint = "resume when it has ended, or take another folder"
        raise ConfigError(what, place=str(folder), hint=hint) from None
    except OSError as e:
        if e.errno not in _NO_LOCKS:
            raise TrainingError(f"cannot be written: {e.strerror}", place=str(folder)) from None
        Path(lock.lock_file).unlink(missing_ok=True)
        note(f"{folder} lies on a file system without locks: no second run may write into it")


def _sign(handle: int) -> None:
    """Write into the file who holds it."""
    os.ftruncate(handle, 0)
    os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())


def _holder(path: Path) -> str:
    for _ in range(_READS):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(path.read_bytes())
            return f"process {found['pid']} on {found['host']}"
        time.sleep(0.05)
    return "whose process is not known"  # Where a lock also keeps readers out.
