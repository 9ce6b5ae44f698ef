"""The manifest of a folder: size and SHA-256 of each file, written last, and held against them when it is opened.

Sizes are compared every time. Digests are compared the first time after a folder was written, copied or touched, and
whenever that is asked for: which files were found whole is noted beside them, by what changes when a file does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

from .documents import open_regular, parse_json, read_text
from .errors import WeightsError, unreadable

MANIFEST, VERIFIED = "checksums.json", ".verified.json"
FORMAT = "monograph-files-1"
_AGAIN = "build the model again"


def sha256_of(path: Path) -> str:
    """The digest of a file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """The digest of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def stamp_of(path: Path) -> list[int]:
    """Place, size and times of a file: as long as they are the same, it holds what it held.

    The time of the last change of its entry cannot be set, so a copy that keeps all other times is another file.
    """
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def seal(folder: Path) -> None:
    """Write the manifest of a folder over all files that are in it and below."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, VERIFIED)
    }
    said = {"format": FORMAT, "files": files}
    text = json.dumps({**said, "sha256": sha256_of_json(said)}, indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def check(folder: Path, *, every_byte: bool = False, required: bool = True) -> None:
    """Compare a folder with its manifest; files that it does not name may be there.

    every_byte: compare digests even of files that were found whole before. required: a folder without a manifest is
    refused. Raises WeightsError naming the file.
    """
    if not required and not (folder / MANIFEST).exists():
        return
    files = _read(folder / MANIFEST)
    for name, about in files.items():
        path = folder / name
        if not path.is_file():
            raise WeightsError(f"is not there, but was written: {_AGAIN}", place=str(path))
        if (size := path.stat().st_size) != about["bytes"]:
            what = f"is {size} bytes long, but {about['bytes']} were written: {_AGAIN}"
            raise WeightsError(what, place=str(path))
    now = {name: [about["sha256"], *stamp_of(folder / name)] for name, about in files.items()}
    noted: Mapping[str, Any] = {} if every_byte else _noted(folder / VERIFIED)
    changed = [name for name in files if noted.get(name) != now[name]]
    for name in changed:
        if sha256_of(folder / name) != files[name]["sha256"]:
            raise WeightsError(f"is not the file that was written: {_AGAIN}", place=str(folder / name))
    if changed:
        _note(folder / VERIFIED, now)


def _read(path: Path) -> dict[str, Any]:
    """What a manifest says of each file. Raises WeightsError if it is not there, or not as it was written."""
    try:
        said = cast("dict[str, Any]", parse_json(read_text(path)))
        found = said.pop("sha256")
        whole = said["format"] == FORMAT and found == sha256_of_json(said)
        files = cast("dict[str, Any]", dict(said["files"]))
    except FileNotFoundError:
        raise WeightsError(
            f"is not there, and says what the other files should be: {_AGAIN}", place=str(path)
        ) from None
    except OSError as e:
        raise WeightsError(unreadable(e), place=str(path)) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        whole, files = False, {}
    if not whole:
        raise WeightsError(f"is damaged: {_AGAIN}", place=str(path))
    outside = [name for name in files if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if outside:
        raise WeightsError(f"names {outside[0]!r}, which is not a file beside it", place=str(path))
    return files


def _noted(path: Path) -> dict[str, Any]:
    """What was found whole, and when; a note that cannot be read says nothing."""
    with contextlib.suppress(OSError, ValueError):
        found: Any = parse_json(read_text(path))
        return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    return {}


def _note(path: Path, now: Mapping[str, Any]) -> None:
    """Note what was found whole, where the folder can be written. Half a note is none."""
    with contextlib.suppress(OSError):
        path.write_text(json.dumps(now), encoding="utf-8")
