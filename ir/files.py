"""Write files whole or not at all: everything goes to temporary names and is renamed together at the end."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO


class Stage:
    """Files on their way into `folder`; none is visible under its own name before the `staged` block ends.

    stale: files of an older result, removed once the new ones are in place.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.suffix = f".{uuid.uuid4().hex}.tmp"
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
        return self.folder / f".{name}{self.suffix}"


@contextlib.contextmanager
def staged(folder: str | Path) -> Generator[Stage, None, None]:
    """Create `folder` if needed and stage files in it: all renamed at the end of the block, or none after an error."""
    folder = Path(folder)
    created = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    stage = Stage(folder)
    try:
        yield stage
        for name in stage.names:
            stage.path(name).replace(folder / name)
        for old in stage.stale:
            old.unlink(missing_ok=True)
    except BaseException:
        for name in stage.names:
            stage.path(name).unlink(missing_ok=True)
        for made in created:
            with contextlib.suppress(OSError):
                made.rmdir()
        raise
