"""Write folders and files whole or not at all: under hidden names first, brought to the disk, then renamed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import shutil
import uuid
from collections.abc import Callable, Generator
from pathlib import Path
from typing import BinaryIO

from .errors import MonographError, WriteError

_SUFFIX, _FILES = ".tmp", "files"
_LENGTH = 50
"""Characters of a name that its hidden one has: a name may have 255 bytes."""
_EXCHANGE, _HERE = 2, -100
"""RENAME_EXCHANGE and AT_FDCWD of Linux."""


class Stage:
    """Files on their way into `folder`; none has its own name before the block that made the stage ends.

    work: the hidden folder in which they are written. stale: files of an older result in `folder`, removed once the
    new ones are in place.
    """

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder, self.work = folder, work
        self.names: list[str] = []
        self.stale: set[Path] = set()

    @contextlib.contextmanager
    def open(self, name: str) -> Generator[BinaryIO, None, None]:
        """A binary file that will be called `name`; its bytes are on disk when the block ends."""
        with self.path(name).open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    def path(self, name: str) -> Path:
        """The temporary path of a file that will be called `name`, for writers that want a path."""
        if name not in self.names:
            self.names.append(name)
        return self.work / name


@contextlib.contextmanager
def whole(
    folder: str | Path, *, replaces: Callable[[Path], str] = lambda folder: "", keep: bool = False
) -> Generator[Stage, None, None]:
    """Write a folder that appears, or takes the place of an older one, in one rename when the block ends.

    Files may be written through the stage or straight into `stage.work`. After an error, or when the process dies at
    any moment, what was there before is untouched, or the new folder is complete; never a mixture. (A mount point
    cannot be renamed: there the files are, one by one.) What killed writers of the same folder left behind is
    removed. replaces(folder): why its content may not be replaced, "" if it may. keep: if the folder has come into
    being meanwhile, it stays and the new one goes. Raises MonographError for a folder that may not be replaced.
    """
    folder = check_writable(folder, replaces)
    if folder.is_mount():
        with staged(folder) as stage:
            old = {p for p in folder.rglob("*") if p.is_file()}
            yield stage
            stage.stale |= {p for p in old if not (stage.work / p.relative_to(folder)).exists()}
        return
    with _placed(folder), _made(folder.parent):
        sweep(folder)
        with _hidden(folder.parent, folder.name) as work:
            yield Stage(folder, work)
            _check_replaced(folder, replaces)
            put(work, folder, keep=keep)


@contextlib.contextmanager
def joined(folder: str | Path) -> Generator[Stage, None, None]:
    """Add files to a folder in one rename, as `whole` does: the others in it are in the new one, too.

    Where that cannot be (it has folders in it, or is a mount point, or where this process works), the files are
    renamed one by one, as `staged` does.
    """
    folder = _resolved(folder)
    sweep(folder / _FILES)
    old = list(folder.iterdir()) if folder.is_dir() else []
    if folder.is_mount() or folder == Path.cwd() or not all(p.is_file() and not p.is_symlink() for p in old):
        with staged(folder) as stage:
            yield stage
        return
    with whole(folder) as stage:
        yield stage
        for path in folder.iterdir() if folder.is_dir() else ():
            if path not in stage.stale and not (stage.work / path.name).exists():
                _link(path, stage.work / path.name)


def _link(old: Path, new: Path) -> None:
    try:
        new.hardlink_to(old)
    except OSError:  # Not every file system has links.
        shutil.copy2(old, new)


@contextlib.contextmanager
def staged(folder: str | Path) -> Generator[Stage, None, None]:
    """Add files to a folder that may hold others: each is whole, and all are renamed at the end or none after an error.

    What killed writers left behind is removed.
    """
    _resolved(folder)
    folder = Path(folder)
    with _placed(folder), _made(folder):
        sweep(folder / _FILES)
        with _hidden(folder, _FILES) as work:
            stage = Stage(folder, work)
            yield stage
            for path in sorted(p for p in work.rglob("*") if p.is_file()):
                sync(path)
                place = folder / path.relative_to(work)
                place.parent.mkdir(exist_ok=True)
                path.replace(place)
            for old in stage.stale:
                old.unlink(missing_ok=True)
            sync(folder)


def write_file(path: Path, content: bytes) -> None:
    """Write one file whole or not at all. Raises WriteError."""
    with staged(path.parent) as stage, stage.open(path.name) as file:
        file.write(content)


def put(work: Path, folder: Path, *, keep: bool = False) -> None:
    """Bring all that is in `work` to the disk, then give it the name of `folder`, beside it, and remove the old one.

    keep: an older folder stays, and `work` goes.
    """
    for path in sorted(work.rglob("*"), reverse=True):
        sync(path)
    sync(work)
    try:
        work.rename(folder)  # Onto nothing, or onto an empty folder.
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not keep:
            old = work.with_name(_hidden_name(folder.name))
            if not _exchanged(work, folder):
                folder.rename(old)
                work.rename(folder)
                work = old
        shutil.rmtree(work, ignore_errors=True)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if os.name != "posix" and path.is_dir():
        return  # Such systems open no folders.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Remove what dead writers of a folder left beside it.

    A writer holds a lock on its hidden folder for as long as it lives, on systems that have such locks; elsewhere
    nothing is removed.
    """
    for left in folder.parent.glob(f".{glob.escape(folder.name[:_LENGTH])}.*{_SUFFIX}"):
        if not left.is_dir() or left.is_symlink():
            continue
        with contextlib.suppress(OSError), _locked(left) as alone:
            if alone:
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def beside(folder: Path, name: str) -> Generator[Path, None, None]:
    """A scratch folder on the disk of `folder`, next to it if that is possible; gone after the block.

    What killed writers left there is removed. name: what it is for. Raises WriteError where it cannot be made, or where
    the disk is full.
    """
    near = next(p for p in folder.absolute().parents if p.is_dir())
    named = f"{folder.name[: _LENGTH - len(name) - 1]}.{name}"
    sweep(near / named)
    with _placed(near), contextlib.ExitStack() as stack:
        try:
            work = stack.enter_context(_hidden(near, named))
        except OSError as e:
            raise WriteError(e, place=str(near)) from e
        yield work


def _hidden_name(name: str) -> str:
    return f".{name[:_LENGTH]}.{uuid.uuid4().hex}{_SUFFIX}"


@contextlib.contextmanager
def _hidden(parent: Path, name: str) -> Generator[Path, None, None]:
    """A new hidden folder in `parent`, locked; gone after the block unless it was renamed."""
    work = parent / _hidden_name(name)
    work.mkdir()
    try:
        with _locked(work):
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Generator[bool, None, None]:
    """Whether nobody else has the lock of a folder, which is held until the block ends or the process dies."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # Held by another, or a file system without locks.
            alone = False
        else:
            alone = True
        yield alone
    finally:
        os.close(handle)


def _exchanged(a: Path, b: Path) -> bool:
    """Exchange the names of two folders in one step, where the system can; gives whether it did."""
    exchange = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if exchange is None:
        return False
    return exchange(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE) == 0


def _resolved(folder: str | Path) -> Path:
    """Where a folder really lies. Raises MonographError for what cannot be one."""
    try:
        found = Path(os.path.realpath(folder))
        file = next((p for p in (found, *found.parents) if p.exists() and not p.is_dir()), None)
    except (OSError, ValueError) as e:
        raise MonographError(f"cannot be a folder: {e}", place=str(folder)) from None
    if found.is_symlink():
        raise MonographError("is a link that leads to itself", place=str(folder))
    if file is not None:
        raise MonographError("is a file, not a folder", place=str(file))
    return found


def check_writable(folder: str | Path, replaces: Callable[[Path], str] = lambda folder: "") -> Path:
    """Where a folder really lies that `whole` may write: to be asked before hours of work. Raises MonographError."""
    found = _resolved(folder)
    _check_replaced(found, replaces)
    above = next(p for p in found.parents if p.exists())
    if not found.is_mount() and not os.access(above, os.W_OK | os.X_OK):
        raise MonographError("cannot be written: permission denied", place=str(above))
    return found


def _check_replaced(folder: Path, replaces: Callable[[Path], str]) -> None:
    if folder.is_dir() and any(folder.iterdir()) and (reason := replaces(folder)):
        raise MonographError(reason, place=str(folder), hint="give a new or an empty folder")


@contextlib.contextmanager
def _placed(folder: Path) -> Generator[None, None, None]:
    """A write that fails does not say into what: a full disk becomes a WriteError with the folder."""
    try:
        yield
    except OSError as e:
        if e.filename is not None or e.strerror is None or isinstance(e, BrokenPipeError):
            raise
        raise WriteError(e, place=str(folder)) from e


@contextlib.contextmanager
def _made(folder: Path) -> Generator[None, None, None]:
    """Create a folder and those above it; after an error, those go again that were not there and are empty."""
    new = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise MonographError(f"cannot be made: {e.strerror}", place=str(folder)) from None
    try:
        yield
    except BaseException:
        for made in new:
            with contextlib.suppress(OSError):
                made.rmdir()
        raise


def cache_folder() -> Path:
    """Where this user's cache lies: $MONOGRAPH_CACHE, or ~/.cache/monograph."""
    return Path(os.environ.get("MONOGRAPH_CACHE") or Path.home() / ".cache" / "monograph")
