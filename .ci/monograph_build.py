"""The build backend: setuptools, but for editable installs, which Python and type checkers both find their way in.

The rooms stand beside each other in the repository and below `monograph` where they are installed. setuptools maps them
by a hook that only Python runs, and by names that it wrote down when it was installed. Here `editable/monograph` is a
link to `api`, which has links to the rooms: one path in a `.pth` file, which type checkers and editors read, too, and
where new files and rooms are as soon as they are written. Python gets the files that the links lead to, by a finder, so
that tracebacks and breakpoints have the names that people edit.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import build_sdist as build_sdist
from setuptools.build_meta import build_wheel as build_wheel
from setuptools.build_meta import get_requires_for_build_editable as get_requires_for_build_editable
from setuptools.build_meta import get_requires_for_build_sdist as get_requires_for_build_sdist
from setuptools.build_meta import get_requires_for_build_wheel as get_requires_for_build_wheel
from setuptools.build_meta import prepare_metadata_for_build_editable as prepare_metadata_for_build_editable
from setuptools.build_meta import prepare_metadata_for_build_wheel as prepare_metadata_for_build_wheel

LINKS = Path(__file__).resolve().parent / "editable"

FINDER = '''"""Gives Python the files that the links of an editable install of monograph lead to."""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import spec_from_file_location

LINKS = {links!r}


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] != "monograph":
            return None
        spec = PathFinder.find_spec(name, [LINKS] if path is None else path, target)
        file = spec and spec.origin and os.path.realpath(spec.origin)
        if not file or file == spec.origin:
            return spec
        inside = None if spec.submodule_search_locations is None else [os.path.dirname(file)]
        return spec_from_file_location(name, file, submodule_search_locations=inside)


sys.meta_path.insert(0, Finder)
'''


def build_editable(
    wheel_directory: str, config_settings: dict[str, Any] | None = None, metadata_directory: str | None = None
) -> str:
    """Write a wheel of the metadata, a path file and the finder; gives its name. Without links, setuptools' own."""
    if not (LINKS / "monograph" / "ir" / "__init__.py").is_file():  # Windows, and archives that keep no links.
        return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    folder = Path(wheel_directory)
    metadata = folder / prepare_metadata_for_build_wheel(wheel_directory, config_settings)
    files = {f"{metadata.name}/{p.relative_to(metadata)}": p.read_bytes() for p in metadata.rglob("*") if p.is_file()}
    name = metadata.name.removesuffix(".dist-info")
    tag = "Wheel-Version: 1.0\nGenerator: monograph_build\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{metadata.name}/WHEEL"] = tag.encode()
    files["__editable__.monograph.pth"] = f"{LINKS}\nimport __editable___monograph_finder\n".encode()
    files["__editable___monograph_finder.py"] = FINDER.format(links=str(LINKS)).encode()
    files.pop(f"{metadata.name}/RECORD", None)
    wheel = f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(folder / wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        archive.writestr(f"{metadata.name}/RECORD", "".join(map(_line, files.items())) + f"{metadata.name}/RECORD,,\n")
    return wheel


def _line(file: tuple[str, bytes]) -> str:
    path, content = file
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{path},sha256={digest},{len(content)}\n"
