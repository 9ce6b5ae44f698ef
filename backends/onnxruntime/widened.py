"""Ops that a provider has in f32 only, in a graph of 16-bit floats: casts around them."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir

from ..target import KernelTable

_NARROW = (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)


def widen(model: onnx_ir.Model, table: KernelTable) -> list[str]:
    """Put casts around every node that has no kernel in its 16-bit type but one in f32. Gives their op types."""
    found: list[onnx_ir.Node] = [
        node
        for node in model.graph
        if table.problem(node, model.opset_imports) and not table.problem(node, model.opset_imports, wide=True)
    ]
    for node in found:
        for i, v in enumerate(node.inputs):
            if v is not None and v.dtype in _NARROW:
                (wide,) = _cast(model.graph, v, onnx_ir.DataType.FLOAT, f"{v.name}.to.{node.name}.{i}", before=node)
                node.replace_input_with(i, wide)
        _narrowed(model.graph, node, node.outputs)
    return [node.op_type for node in found]


def widen_ends(model: onnx_ir.Model) -> None:
    """Inputs and outputs in bf16, which NumPy does not have, become f32 and are cast inside."""
    graph = model.graph
    for v in graph.inputs:
        if v.dtype == onnx_ir.DataType.BFLOAT16:
            readers = list(v.uses())
            v.dtype = onnx_ir.DataType.FLOAT
            first = next(iter(graph), None)
            (narrow,) = _cast(graph, v, onnx_ir.DataType.BFLOAT16, f"{v.name}.narrow", before=first)
            for reader, i in readers:
                reader.replace_input_with(i, narrow)
    for i, v in enumerate(list(graph.outputs)):
        node = v.producer()
        if v.dtype == onnx_ir.DataType.BFLOAT16 and node is not None:
            name = v.name or ""
            v.name = f"{name}.narrow"
            (graph.outputs[i],) = _cast(graph, v, onnx_ir.DataType.FLOAT, name, after=node)


def _narrowed(graph: onnx_ir.Graph, node: onnx_ir.Node, outputs: Iterable[onnx_ir.Value]) -> None:
    """What a node now gives in f32, in the type that its readers expect and under the name they know."""
    for v in outputs:
        if v.dtype not in _NARROW:
            continue
        narrow, name = v.dtype, v.name or ""
        readers = list(v.uses())
        v.dtype, v.name = onnx_ir.DataType.FLOAT, f"{name}.wide"
        (back,) = _cast(graph, v, narrow, name, after=node)
        for reader, i in readers:
            reader.replace_input_with(i, back)
        for i, out in enumerate(graph.outputs):
            if out is v:
                graph.outputs[i] = back


def _cast(
    graph: onnx_ir.Graph,
    v: onnx_ir.Value,
    to: onnx_ir.DataType,
    name: str,
    *,
    before: onnx_ir.Node | None = None,
    after: onnx_ir.Node | None = None,
) -> tuple[onnx_ir.Value, ...]:
    cast = onnx_ir.node("Cast", [v], {"to": int(to)}, name=f"cast.{name}")
    (made,) = cast.outputs
    made.name, made.dtype, made.shape = name, to, v.shape
    place = before if before is not None else after
    if place is not None:
        cast.metadata_props.update(place.metadata_props)
    if before is not None:
        graph.insert_before(before, cast)
    elif after is not None:
        graph.insert_after(after, cast)
    return (made,)
