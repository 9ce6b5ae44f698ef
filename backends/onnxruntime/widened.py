"""Ops that a provider has in f32 only, in a graph of 16-bit floats: casts around them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import onnx_ir

from ...ir.types import DType, bf16, f16, f32
from ..onnx.untyped import read_graph
from ..target import KernelTable, schema_of

_NARROW = (onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)


def float_of(folder: str | Path) -> DType:
    """The narrowest float type of the weights in the ONNX files of a folder."""
    files = (read_graph(f) for f in sorted(Path(folder).glob("*.onnx")))
    kinds = {tensor.data_type for f in files for tensor in f.graph.initializer}
    found = [dtype for dtype, kind in _KINDS.items() if kind in kinds]
    return found[0] if found else f32


_KINDS = {bf16: onnx_ir.DataType.BFLOAT16.value, f16: onnx_ir.DataType.FLOAT16.value}


def widen(model: onnx_ir.Model, table: KernelTable) -> list[str]:
    """Put casts around every node that has no kernel in its 16-bit type but one in f32. Gives their op types."""
    opsets = model.opset_imports
    typed(model)
    found: list[onnx_ir.Node] = [
        node
        for node in model.graph
        if table.problem(node, opsets, whole=True) and not table.problem(node, opsets, wide=True, whole=True)
    ]
    for node in found:
        for i, v in enumerate(node.inputs):
            if v is not None and v.dtype in _NARROW:
                (wide,) = _cast(model.graph, v, onnx_ir.DataType.FLOAT, f"{v.name}.to.{node.name}.{i}", before=node)
                node.replace_input_with(i, wide)
        _narrowed(model.graph, node, node.outputs)
    return [node.op_type for node in found]


def typed(model: onnx_ir.Model) -> None:
    """Give every value its element type, where the schema of its op says which of its inputs has the same."""
    for node in model.graph:
        schema = schema_of(node.op_type, model.opset_imports.get(node.domain, 1), node.domain)
        if schema is None:
            continue
        known = {
            labels[0]: v.dtype
            for labels, v in zip(_repeated(schema["inputs"], len(node.inputs)), node.inputs, strict=True)
            if v is not None and v.dtype is not None
        }
        for (label, _), v in zip(_repeated(schema["outputs"], len(node.outputs)), node.outputs, strict=True):
            to = node.attributes.get("to")
            found = onnx_ir.DataType(to.as_int()) if to is not None else known.get(label) or _FIXED.get(label)
            if v.dtype is None and found is not None:
                v.dtype = found


def _repeated(labels: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """The labels of so many operands: the last one of a schema may repeat."""
    return [labels[min(i, len(labels) - 1)] for i in range(count)]


_FIXED = {"tensor(int64)": onnx_ir.DataType.INT64, "tensor(bool)": onnx_ir.DataType.BOOL}


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
        narrow, name = v.dtype, v.name or ""
        if narrow is None or narrow not in _NARROW:
            continue
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
    cast = onnx_ir.node("Cast", [v], {"to": int(to)}, name=f"cast.{v.name}.{name}")
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
