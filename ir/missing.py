"""Packages that an install may lack: which part of Monograph needs them, and what installs them."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from .errors import MonographError

EXTRAS = {
    "torch": "train",
    "networkx": "train",
    "filelock": "train",
    "tomli_w": "train",
    "onnxruntime": "cpu",
    "pyarrow": "data",
    "datasketch": "data",
    "matplotlib": "plot",
    "llguidance": "grammar",
    "fastapi": "serve",
    "uvicorn": "serve",
    "pydantic": "serve",
    "prometheus_client": "serve",
    "ray": "cluster",
}
"""The extra that brings each package."""


class MissingPackageError(MonographError, ImportError):
    """A package is not installed that only a part of Monograph needs."""


@contextlib.contextmanager
def needed(what: str) -> Generator[None]:
    """A package that is missing inside the block becomes a MissingPackageError that says what installs it.

    what: that needs it, as the beginning of a sentence.
    """
    try:
        yield
    except MissingPackageError:
        raise
    except ModuleNotFoundError as e:
        package = (e.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        hint = f'pip install "monograph[{EXTRAS[package]}]"'
        raise MissingPackageError(f"{what} needs {package}, which is not installed", hint=hint) from e
