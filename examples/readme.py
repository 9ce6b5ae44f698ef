"""The example of README.md, as code that runs: so the page cannot drift away from the project."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

README = Path(__file__).parent.parent / "README.md"


def run(changes: Mapping[str, str] = {}) -> dict[str, Any]:
    """Run the example as a module of its own; gives the names it defined. changes: see `example`."""
    module = ModuleType("readme_example")
    sys.modules[module.__name__] = module
    exec(example(changes), module.__dict__)
    return module.__dict__


def example(changes: Mapping[str, str] = {}) -> CodeType:
    """The first Python block of README.md, compiled so that errors and graphs name its lines there.

    changes: pieces of its text and what to put in their place. Raises ValueError for a piece that is not in it once.
    """
    page = README.read_text()
    found = re.search(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"{README} has no Python block")
    text = found[1]
    for old, new in changes.items():
        if text.count(old) != 1:
            raise ValueError(f"{old!r} occurs {text.count(old)} times in the example of {README}, expected once")
        text = text.replace(old, new)
    return compile("\n" * page.count("\n", 0, found.start(1)) + text, str(README), "exec")
