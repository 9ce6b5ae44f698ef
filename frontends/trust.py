"""Whose Python is run: the model files that this user's runs and builds kept. Those of strangers are refused.

A folder that somebody sends may hold a model file, too, and to load the model is to run it. So what is written here is
noted by its digest, and only what was noted is run without being asked for.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from ..ir.errors import ConfigError
from ..ir.files import cache_folder
from ..ir.manifest import sha256_of_json

VARIABLE = "MONOGRAPH_TRUST"
"""Environment variable: 1 runs the model files of any folder."""
FILE = "own_models.txt"
"""In the cache of the user: one digest a line."""


def note(content: Any) -> None:
    """Remember what a folder of this user keeps. A cache that cannot be written only makes loading ask."""
    digest = sha256_of_json(content)
    with contextlib.suppress(OSError, RuntimeError):
        if digest not in _noted():
            cache_folder().mkdir(parents=True, exist_ok=True)
            with (cache_folder() / FILE).open("a", encoding="ascii") as f:
                f.write(f"{digest}\n")


def check(content: Any, place: Path) -> None:
    """Raises ConfigError for model files that were not kept by this user, unless any are to be run."""
    if os.environ.get(VARIABLE) == "1" or sha256_of_json(content) in _noted():
        return
    what = "holds the Python of a model that was not written here, and loading would run it"
    hint = f"read it; then set {VARIABLE}=1, or give a file of your own with --family FILE.py, or family= in Python"
    raise ConfigError(what, place=str(place), hint=hint)


def _noted() -> frozenset[str]:
    try:
        return frozenset((cache_folder() / FILE).read_text("ascii").split())
    except (OSError, RuntimeError, ValueError):  # RuntimeError: a user without a home
        return frozenset()
