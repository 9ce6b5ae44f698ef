"""Reference semantics: run a graph in NumPy, one op at a time. This decides which backend is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, cast

import numpy as np

from .dims import bind_dims, linear
from .errors import LoweringError, RuntimeInputError, did_you_mean
from .graph import Graph, Node, Value
from .op import Op, body_of
from .types import Dim, DType, TensorType, substitute
from .value import type_of

Array = np.ndarray[Any, Any]


def resolve(value: Any, dims: Mapping[str, int]) -> Any:
    """An attribute with every symbolic dimension replaced by its number. Raises LoweringError if one is unknown."""
    if isinstance(value, Dim):
        number = value.substitute(dims)
        if isinstance(number, Dim):
            raise LoweringError(f"dimension {value} is not determined by the inputs (known: {', '.join(sorted(dims))})")
        return number
    if isinstance(value, tuple):
        return tuple(resolve(v, dims) for v in cast("tuple[Any, ...]", value))
    return value


def interpret(
    graph: Graph,
    inputs: Mapping[str, Array],
    params: Mapping[str, Array] | Callable[[str], Array] = {},  # noqa: B006 - never written
    observe: Callable[[Node, tuple[Array, ...]], None] | None = None,
    *,
    exact: bool = False,
) -> dict[str, Array]:
    """Outputs of the graph by name.

    inputs: one array per graph input, of its dtype; symbols are read off their shapes. params: by checkpoint
    path, a mapping or a function. observe: called with every node and its results. exact: all floats are f64, whatever
    type the graph gives them, so that what is left of a difference is no rounding. Raises RuntimeInputError for a
    missing input, a wrong dtype or contradicting shapes.
    """
    for name, v in graph.inputs.items():
        if name not in inputs:
            raise RuntimeInputError(f"input {name}: {v.type} is missing")
        wide = exact and v.dtype in _WIDER and inputs[name].dtype == np.float64
        if inputs[name].dtype != v.type.stored.dtype.numpy and not wide:
            raise RuntimeInputError(f"input {name} is {DType.of(inputs[name].dtype)}, expected {v.type}")
    dims = bind_dims({k: v.type.stored for k, v in graph.inputs.items()}, {k: inputs[k].shape for k in graph.inputs})
    values: dict[Value, Array] = {v: inputs[k] for k, v in graph.inputs.items()}
    values |= {v: _param(v, params) for v in graph.params.values() if v.uses or graph.is_output(v)}
    if exact:
        values = {v: x if v.type.encoding is not None else widened_array(x) for v, x in values.items()}
    remaining = {v: len(v.uses) for node in graph for v in node.outputs}
    kept = set(graph.outputs.values())
    for node in graph:
        operands = [None if v is None else values[v] for v in node.operands]
        results = evaluate_node(node, operands, dims, exact=exact)
        learn_dims(dims, node, results)
        _check_results(node, results, dims, exact)
        values.update(zip(node.outputs, results, strict=True))
        if observe is not None:
            observe(node, results)
        for v in set(node.arguments):
            if v in remaining and v not in kept:
                remaining[v] -= sum(1 for o in node.operands if o is v)
                if remaining[v] == 0:
                    del values[v]
    return {name: values[v] for name, v in graph.outputs.items()}


_WIDER = {DType.f32: DType.f64, DType.f16: DType.f64, DType.bf16: DType.f64}


def widened_array(x: Array) -> Array:
    """Floats as f64; all else as it is."""
    narrow = x.dtype.kind in "fV" and DType.of(x.dtype) in _WIDER
    return x.astype(np.float64) if narrow else x


def evaluate_node(
    node: Node, operands: list[Array | None], dims: Mapping[str, int], *, exact: bool = False
) -> tuple[Array, ...]:
    """Results of a node on arrays, as `evaluate`. exact: all floats are f64, whatever type the graph gives them."""
    given = [type_of(v) for v in node.operands]
    if not exact:
        return evaluate(node.op, operands, node.attributes, dims, given)
    attributes = {k: _WIDER.get(v, v) if isinstance(v, DType) else v for k, v in node.attributes.items()}
    if node.op.as_typed:
        operands = [
            x if t is None or x is None else x.astype(t.stored.dtype.numpy)
            for x, t in zip(operands, given, strict=True)
        ]
    return tuple(map(widened_array, evaluate(node.op, operands, attributes, dims, given)))


def _param(v: Value, params: Mapping[str, Array] | Callable[[str], Array]) -> Array:
    if not callable(params) and v.name not in params:
        raise RuntimeInputError(f"parameter {v.name}: {v.type} is missing{did_you_mean(v.name, params)}")
    x = np.asarray(params(v.name) if callable(params) else params[v.name])
    held = v.type.stored
    if x.shape != held.shape or (v.type.encoding is not None and x.dtype != np.uint8):
        stored = "" if v.type.encoding is None else f", stored as {held}"
        raise RuntimeInputError(f"parameter {v.name} is {x.dtype}{list(x.shape)}, expected {v.type}{stored}")
    return x.astype(held.dtype.numpy, copy=False)


def learn_dims(dims: dict[str, int], node: Node, results: tuple[Array, ...]) -> None:
    """Note the sizes that only the results of a node show, such as how many elements are not zero."""
    for v, x in zip(node.outputs, results, strict=True):
        if v.type.symbols - dims.keys() and x.ndim == v.rank:
            for d, n in zip(v.shape, x.shape, strict=True):
                unknown = d.symbols - dims.keys() if isinstance(d, Dim) else ()
                parts = linear(d, next(iter(unknown))) if isinstance(d, Dim) and len(unknown) == 1 else None
                rest, factor = substitute(parts or (0, 0), dims)
                if isinstance(rest, int) and isinstance(factor, int) and factor and (n - rest) % factor == 0:
                    dims[next(iter(unknown))] = (n - rest) // factor


def _check_results(node: Node, results: tuple[Array, ...], dims: Mapping[str, int], exact: bool) -> None:
    """A slice may reach past what its symbolic shape promised; NumPy would go on with what is there."""
    for v, x in zip(node.outputs, results, strict=True):
        dtype = _WIDER.get(v.dtype, v.dtype) if exact else v.dtype
        if x.shape != substitute(v.shape, dims) or x.dtype != dtype.numpy:
            what = f"{node.op.name} gave {DType.of(x.dtype)}{list(x.shape)}, expected {v.type}"
            raise RuntimeInputError(what, place=str(node.location), details=[f"{k} = {n}" for k, n in dims.items()])


def evaluate(
    op: Op,
    operands: list[Array | None],
    attributes: Mapping[str, Any],
    dims: Mapping[str, int],
    given: Sequence[TensorType | None] = (),
) -> tuple[Array, ...]:
    """Results of one op on arrays: a primitive by its `numpy`, a composite by interpreting its body.

    given: the types of the operands in the graph, which tell what the bytes of encoded ones mean.
    """
    attributes = {k: v if k in op.unresolved else resolve(v, dims) for k, v in attributes.items()}
    if op.numpy is not None:
        try:
            with np.errstate(all="ignore"):
                results = op.numpy(*operands, **attributes)
        except (IndexError, ValueError) as e:
            raise RuntimeInputError(f"{op.name}: {e}") from e
        return tuple(map(np.asarray, results)) if isinstance(results, tuple) else (np.asarray(results),)
    types = [None if a is None else TensorType(DType.of(a.dtype), a.shape) for a in operands]
    types = [g if g is not None and g.encoding is not None else t for t, g in zip_longest(types, given)]
    body = body_of(op, types, attributes)
    names = op.signature.operand_names(len(operands))
    named = {n: a for n, a in zip(names, operands, strict=True) if a is not None}
    return tuple(interpret(body, named).values())
