"""How large the values of a model really get: one run of its graph, in which no more than one weight is in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir.dims import bind_dims
from ..ir.errors import MonographError
from ..ir.graph import Graph, Node, Value
from ..ir.interpret import Array, evaluate, interpret, resolve
from ..ir.op import body_of
from ..ir.ranges import Range
from ..ir.tensors import Tensor, held
from ..ir.types import Dim, TensorType
from ..ir.value import type_of
from .differential import Case, sample_inputs, window

SAMPLE = Case("all-ones", 1, length=24)
"""Random tokens show what weights do: a few channels of the first tokens are the largest whatever the text is."""


@dataclass
class Observed:
    """What a run showed. values: bounds of float values. inside: the largest number inside composites with a body."""

    values: dict[Value, Range] = field(default_factory=dict[Value, Range])
    inside: dict[Node, float] = field(default_factory=dict[Node, float])


def observe(graph: Graph, weights: Mapping[str, Tensor], inputs: Mapping[str, Array] | None = None) -> Observed:
    """Bounds that the float values of a graph kept to on one call; nothing where the graph cannot be run.

    inputs: by name (None: random ones that fit). What is remembered between calls is empty.
    """
    try:
        given = window(graph, sample_inputs(graph, SAMPLE), 0, SAMPLE.length) if inputs is None else dict(inputs)
        given |= {s.input: _empty(graph, s.input) for s in graph.slots}
        return _run(graph, weights, given)
    except MonographError:
        return Observed()


def _empty(graph: Graph, name: str) -> Array:
    type = graph.inputs[name].type
    shape = tuple(SAMPLE.batch if str(d) == "B" else 0 if isinstance(d, Dim) else d for d in type.shape)
    return np.zeros(shape, type.dtype.numpy)


def _run(graph: Graph, weights: Mapping[str, Tensor], inputs: Mapping[str, Array]) -> Observed:
    dims = bind_dims({k: v.type for k, v in graph.inputs.items()}, {k: inputs[k].shape for k in graph.inputs})
    values: dict[Value, Array] = {v: inputs[k] for k, v in graph.inputs.items()}
    found = Observed()
    remaining = {v: len(v.uses) for node in graph for v in node.outputs}
    for node in graph:
        operands = [None if v is None else _operand(v, values, weights) for v in node.operands]
        attributes: dict[str, Any] = {k: resolve(v, dims) for k, v in node.attributes.items()}
        if node.op.body is None or node.op.wide:
            results = evaluate(node.op, operands, attributes, dims, [type_of(v) for v in node.operands])
        else:
            results, found.inside[node] = _opened(node, operands, attributes)
        del operands
        for v, x in zip(node.outputs, results, strict=True):
            values[v] = x
            if v.dtype.is_float and x.size:
                found.values[v] = _seen(x)
        for v in node.arguments:
            if v in remaining:
                remaining[v] -= 1
                if not remaining[v]:
                    values.pop(v, None)
    return found


def _opened(node: Node, operands: list[Array | None], attributes: dict[str, Any]) -> tuple[tuple[Array, ...], float]:
    """Results of a composite, and the largest number on the way to them."""
    types = [
        None if v is None or a is None else v.type if v.type.encoding is not None else TensorType(v.dtype, a.shape)
        for v, a in zip(node.operands, operands, strict=True)
    ]
    names = node.op.signature.operand_names(len(operands))
    largest = 0.0

    def look(inner: Node, results: tuple[Array, ...]) -> None:
        nonlocal largest
        floats = (x for v, x in zip(inner.outputs, results, strict=True) if v.dtype.is_float and x.size)
        largest = max([largest, *(float(np.abs(x).max()) for x in floats)])

    given = {n: a for n, a in zip(names, operands, strict=True) if a is not None}
    results = tuple(interpret(body_of(node.op, types, attributes), given, observe=look).values())
    return results, largest if np.isfinite(largest) else float("inf")


def _operand(v: Value, values: Mapping[Value, Array], weights: Mapping[str, Tensor]) -> Array:
    return values[v] if v in values else held(weights[v.name], v.type, v.name)


def _seen(x: Array) -> Range:
    """Bounds of what a call gave; infinite where a number is not finite."""
    if not x.size:
        return Range(0.0, 0.0, 0.0, 0.0)
    wide = x.astype(np.float64)
    if not np.isfinite(wide).all():
        return Range()
    rows = np.sqrt(np.square(wide).sum(-1).max()) if x.ndim else abs(float(wide))
    return Range(float(wide.min()), float(wide.max()), float(rows))
