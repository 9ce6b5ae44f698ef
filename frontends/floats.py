"""The float types that a graph is made of."""

from __future__ import annotations

from ..ir import Graph
from ..ir.types import DType, f32


def floats_of(graph: Graph) -> set[DType]:
    """The float types of what a graph takes."""
    return {v.dtype for v in (*graph.params.values(), *graph.inputs.values()) if v.dtype.is_float}


def main_float(graph: Graph) -> DType:
    """f32, or of a graph without that its widest float type."""
    found = floats_of(graph)
    return f32 if not found or f32 in found else max(found, key=lambda d: d.bits)
