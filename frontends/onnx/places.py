"""Where a node stands: its name, behind the path of the module that an exporter wrote beside it."""

from __future__ import annotations

import re

import onnx

from ...ir.value import Location

SCOPES = "pkg.torch.onnx.name_scopes"
"""The key under which torch.onnx (torch.export) keeps the paths of modules around a node, outermost first, and its own
name, as Python prints a list."""
_LONGEST = 4096
_NAME = re.compile(r"'([^'\\]*)'")


def written_at(node: onnx.NodeProto, file: str) -> Location:
    """The place of a node of a file. Without a path, and where it is in the name already, its name alone."""
    said = next((p.value for p in node.metadata_props if p.key == SCOPES), "")
    paths = _NAME.findall(said[:_LONGEST])
    module = paths[-2] if len(paths) > 1 else ""
    known = not module or node.name.strip("/").replace("/", ".").startswith(module)
    return Location(file, 0, node.name if known else f"{module}/{node.name}")
