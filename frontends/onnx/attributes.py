"""Attributes of nodes are what the format says: one value each, of the type that is said, and no reference."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx

from .errors import OnnxFileError
from .initializers import place_of

_A = onnx.AttributeProto
_FIELDS: dict[int, str] = {
    _A.FLOAT: "f",
    _A.INT: "i",
    _A.STRING: "s",
    _A.TENSOR: "t",
    _A.GRAPH: "g",
    _A.SPARSE_TENSOR: "sparse_tensor",
    _A.TYPE_PROTO: "tp",
    _A.FLOATS: "floats",
    _A.INTS: "ints",
    _A.STRINGS: "strings",
    _A.TENSORS: "tensors",
    _A.GRAPHS: "graphs",
    _A.SPARSE_TENSORS: "sparse_tensors",
    _A.TYPE_PROTOS: "type_protos",
}
"""The field of an attribute that holds its value, by type."""
_HELD = frozenset(_FIELDS.values())


def check_attributes(nodes: Iterable[onnx.NodeProto], path: Path) -> None:
    """Raises OnnxFileError for two of a name, a value of another type than is said, and a reference.

    nodes: of graphs; the attributes of a function may refer to those of its call.
    """
    for node in nodes:
        names = [a.name for a in node.attribute]
        for a in node.attribute:
            wrong = _wrong(a)
            if wrong:
                raise OnnxFileError(f"has attribute {a.name!r}, which {wrong}", place=place_of(path, node))
        if len(set(names)) < len(names):
            twice = next(n for n in names if names.count(n) > 1)
            raise OnnxFileError(f"has {names.count(twice)} attributes called {twice!r}", place=place_of(path, node))


def _wrong(a: onnx.AttributeProto) -> str:
    if not a.name:
        return "has no name"
    if a.ref_attr_name:
        return f"refers to attribute {a.ref_attr_name!r} of a function, and is in none"
    field = _FIELDS.get(a.type)
    if field is None:
        return f"is of type {a.type}; 1 to {max(_FIELDS)} are known"
    other = next((f.name for f, _ in a.ListFields() if f.name in _HELD and f.name != field), None)
    return f"is of type {_A.AttributeType.Name(a.type)}, but holds {other}" if other else ""
