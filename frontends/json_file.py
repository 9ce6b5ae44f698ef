"""JSON files of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from ..ir.documents import parse_json, read_text
from ..ir.errors import ConfigError, unreadable


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file; empty if there is no such file. Raises ConfigError naming the file."""
    try:
        found = parse_json(read_text(path))
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise ConfigError(unreadable(e), place=str(path)) from None
    except ValueError as e:
        raise ConfigError(f"is not JSON that can be read: {e}", place=str(path)) from None
    if not isinstance(found, dict):
        raise ConfigError(f"is a JSON {type(found).__name__}, not an object", place=str(path))
    return cast("dict[str, Any]", found)
