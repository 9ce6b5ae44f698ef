"""Functions of a model in the place of their calls."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import inliner

from .errors import OnnxFileError
from .nested import every_node


def inlined(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """A model without functions. Raises OnnxFileError for those that cannot be inlined.

    A function of another opset than the model is converted to that of the model.
    """
    _agree(model)
    names = {(f.domain, f.name) for f in model.functions}
    if len({(f.domain, f.name, f.overload) for f in model.functions}) < len(model.functions):
        raise OnnxFileError(f"has {len(model.functions)} functions, two of them of one name", place=str(path))
    versions = {_plain(o.domain): o.version for o in model.opset_import}
    mixed = any(versions.get(_plain(o.domain), o.version) != o.version for f in model.functions for o in f.opset_import)
    try:
        found = inliner.inline_local_functions(model, convert_version=mixed)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as e:
        raise OnnxFileError(f"has functions that cannot be inlined: {e}", place=str(path)) from None
    left = next((n for n in found.graph.node if (n.domain, n.op_type) in names), None)
    if left is not None:
        what = f"function {left.domain}.{left.op_type} cannot be inlined: it is of another opset than the model"
        raise OnnxFileError(what, place=str(path))
    return found


def _agree(model: onnx.ModelProto) -> None:
    """Give functions the versions of the model in domains of functions only, and where their operators are the same."""
    own = {f.domain for f in model.functions} - {"", "ai.onnx"}
    said = {_plain(o.domain): o.version for o in model.opset_import}
    for f in model.functions:
        for entry in f.opset_import:
            domain = _plain(entry.domain)
            version = said.get(domain, entry.version)
            names = {n.op_type for n in every_node(f) if _plain(n.domain) == domain}
            if domain in own or all(_alike(name, domain, entry.version, version) for name in names):
                entry.version = version


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _alike(name: str, domain: str, old: int, new: int) -> bool:
    """Whether an operator is the same one in two versions of its domain."""
    try:
        schemas = [onnx.defs.get_schema(name, version, domain) for version in (old, new)]
    except (onnx.defs.SchemaError, OverflowError, TypeError):
        return old == new
    return schemas[0].since_version == schemas[1].since_version
