"""Names of what a program gives, and the places of its nodes in the user's source."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ...ir.graph import Location

_FRAME = re.compile(r'File "(.+?)", line (\d+)')
_LIBRARY, _HERE = str(Path(torch.__file__).parent), str(Path(__file__).parent)


def output_names(spec: Any) -> list[str]:
    """Names of all results in their order: keys and fields by name, places in sequences by number.

    A dict {"logits": x, "hidden": (y, z)} gives logits, hidden.0 and hidden.1; a tensor alone is `output`, and a tuple
    gives output.0, output.1.
    """
    nested = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    paths, _ = pytree.tree_flatten_with_path(nested)
    return [_joined(path) for path, _ in paths]


def _joined(path: Iterable[Any]) -> str:
    parts = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    return ".".join(parts if parts and not parts[0].isdecimal() else ["output", *parts])


def place_of(node: Any) -> Location:
    """The line of the user's code that a node comes from, and the path of its module."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [(file, line) for file, line in frames if not file.startswith(_LIBRARY) and "<" not in file]
    file, line = own[-1] if own else ("", 0)
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
    modules = list(stack.values())
    scope = str(modules[-1][0]) if modules else ""
    return Location(file, int(line), scope if _is_path(scope) else "")


def place_of_error(e: BaseException) -> str:
    """The last line outside of PyTorch and of this importer that an exception passed through; "" if there is none."""
    frames = traceback.extract_tb(e.__traceback__)
    own = [f for f in frames if not f.filename.startswith((_LIBRARY, _HERE)) and "<" not in f.filename]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else ""


def _is_path(scope: str) -> bool:
    return bool(re.fullmatch(r"\w+(\.\w+)*", scope)) and not scope.startswith("_")
