"""How large the values of a model really get: one run of its graph, in which no more than one weight is in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir.dims import bind_dims
from ..ir.errors import MonographError
from ..ir.graph import Graph, Node, Value
from ..ir.interpret import Array, evaluate, resolve
from ..ir.op import body_of
from ..ir.ranges import Range
from ..ir.tensors import Tensor, held
from ..ir.types import Dim, TensorType
from ..ir.value import type_of
from .differential import Case, sample_inputs, window

SAMPLE = Case("all-ones", 1, length=24)
"""Random tokens show what weights do: a few channels of the first tokens are the largest whatever the text is."""

Lazy = Callable[[], Array]
"""An operand that is read when it is needed."""


@dataclass
class Observed:
    """What a run showed. values: bounds of float values. inside: the largest number inside composites with a body."""

    values: dict[Value, Range] = field(default_factory=dict[Value, Range])
    inside: dict[Node, float] = field(default_factory=dict[Node, float])


def observe(graph: Graph, weights: Mapping[str, Tensor], inputs: Mapping[str, Array] | None = None) -> Observed:
    """Bounds that the float values of a graph kept to on one call; nothing where the graph cannot be run.

    inputs: by name (None: random ones that fit). What is remembered between calls is empty.
    """
    found = Observed()

    def look(node: Node, results: tuple[Array, ...], inside: float) -> None:
        found.values |= {v: _seen(x) for v, x in zip(node.outputs, results, strict=True) if v.dtype.is_float}
        if inside:
            found.inside[node] = inside

    try:
        given = window(graph, sample_inputs(graph, SAMPLE), 0, SAMPLE.length) if inputs is None else dict(inputs)
        given |= {s.input: _empty(graph, s.input) for s in graph.slots}
        operands: dict[Value, Lazy] = {v: _kept(given[k]) for k, v in graph.inputs.items()}
        operands |= {v: _weight(weights, v) for v in graph.params.values()}
        dims = bind_dims({k: v.type for k, v in graph.inputs.items()}, {k: given[k].shape for k in graph.inputs})
        _run(graph, operands, dims, look)
    except MonographError:
        return Observed()
    return found


def _empty(graph: Graph, name: str) -> Array:
    type = graph.inputs[name].type
    shape = tuple(SAMPLE.batch if str(d) == "B" else 0 if isinstance(d, Dim) else d for d in type.shape)
    return np.zeros(shape, type.dtype.numpy)


def _kept(x: Array) -> Lazy:
    return lambda: x


def _weight(weights: Mapping[str, Tensor], v: Value) -> Lazy:
    return lambda: held(weights[v.name], v.type, v.name)


def _run(
    graph: Graph,
    values: dict[Value, Lazy],
    dims: Mapping[str, int],
    look: Callable[[Node, tuple[Array, ...], float], None],
) -> list[Array]:
    """The outputs; each value is freed after its last reader, and each weight after each reader."""
    remaining = {v: len(v.uses) for node in graph for v in node.outputs}
    for node in graph:
        operands = [None if v is None else values[v] for v in node.operands]
        attributes: dict[str, Any] = {k: resolve(v, dims) for k, v in node.attributes.items()}
        if node.op.body is None or node.op.wide or node.op.reads_encoded:
            arrays = [None if read is None else read() for read in operands]
            results = evaluate(node.op, arrays, attributes, dims, [type_of(v) for v in node.operands])
            del arrays
            look(node, results, 0.0)
        else:
            results, inside = _opened(node, operands, attributes, values)
            look(node, results, inside)
        values |= {v: _kept(x) for v, x in zip(node.outputs, results, strict=True)}
        for v in node.arguments:
            if v in remaining:
                remaining[v] -= 1
                if not remaining[v] and not graph.is_output(v):
                    values.pop(v, None)
    return [values[v]() for v in graph.outputs.values()]


def _opened(
    node: Node, operands: Sequence[Lazy | None], attributes: dict[str, Any], values: Mapping[Value, Lazy]
) -> tuple[tuple[Array, ...], float]:
    """Results of a composite, and the largest number on the way to them. Its weights are read one at a time."""
    types = [None if v is None else _concrete(v, values[v]) for v in node.operands]
    body = body_of(node.op, types, attributes)
    given = dict(zip(node.op.signature.operand_names(len(operands)), operands, strict=True))
    largest = 0.0

    def look(inner: Node, results: tuple[Array, ...], inside: float) -> None:
        nonlocal largest
        floats = (x for v, x in zip(inner.outputs, results, strict=True) if v.dtype.is_float and x.size)
        largest = max([largest, inside, *(float(np.abs(x).max()) for x in floats)])

    read = {v: given[name] for name, v in body.inputs.items()}
    results = _run(body, {v: x for v, x in read.items() if x is not None}, {}, look)
    return tuple(results), largest if np.isfinite(largest) else float("inf")


def _concrete(v: Value, read: Lazy) -> TensorType:
    """The type of an operand with its sizes as numbers; weights have them already."""
    return v.type if not v.type.symbols else TensorType(v.dtype, read().shape)


def _seen(x: Array) -> Range:
    """Bounds of what a call gave; infinite where a number is not finite."""
    if not x.size:
        return Range(0.0, 0.0, 0.0, 0.0)
    wide = x.astype(np.float64)
    if not np.isfinite(wide).all():
        return Range()
    rows = np.sqrt(np.square(wide).sum(-1).max()) if x.ndim else abs(float(wide))
    return Range(float(wide.min()), float(wide.max()), float(rows))
