"""Symbols of a graph, in types and in attributes, that become other sizes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

from ..ir.graph import Graph, Value
from ..ir.types import Dim, DimLike


def substitute_symbols(graph: Graph, sizes: Mapping[str, DimLike], *, where: Collection[Value] | None = None) -> None:
    """Put other sizes in the place of symbols, in all types and attributes. where: of these values, and of the nodes
    that make them (None: of all)."""
    if all(Dim.symbol(s) == d for s, d in sizes.items()):
        return
    for v in values_of(graph):
        if where is None or v in where:
            v.type = v.type.substitute(sizes)
    for node in graph:
        if where is None or any(v in where for v in node.outputs):
            node.attributes = {k: _substituted(a, sizes) for k, a in node.attributes.items()}


def values_of(graph: Graph) -> list[Value]:
    """Inputs, parameters and the results of all nodes."""
    return [*graph.inputs.values(), *graph.params.values(), *(v for node in graph for v in node.outputs)]


def _substituted(attribute: object, sizes: Mapping[str, DimLike]) -> object:
    if isinstance(attribute, Dim):
        return attribute.substitute(sizes)
    if isinstance(attribute, tuple):
        return tuple(_substituted(a, sizes) for a in cast("tuple[object, ...]", attribute))
    return attribute
