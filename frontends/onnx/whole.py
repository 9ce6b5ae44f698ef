"""A graph that cannot be typed value by value, as one foreign node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx

from ...ir.tensors import ArrayTensor
from .errors import OnnxFileError
from .file import OnnxFile
from .nested import subgraphs
from .types import DTYPES

CONDITION = "monograph_always"
"""The name of a condition that is true."""


def wrapped(file: OnnxFile) -> OnnxFile:
    """The same model with all its nodes inside an If that is always taken: only its inputs and outputs need types.

    Initializers stay where they are and are read from inside. Raises OnnxFileError where an output has no type.
    """
    own = file.model.graph
    for v in own.output:
        t = v.type.tensor_type
        if t.elem_type not in DTYPES or not t.HasField("shape"):
            place = f"{file.path}: output {v.name}"
            raise OnnxFileError("does not say that it is a tensor, of which rank and element type", place=place)
    branches = [_branch(own, "then"), _branch(own, "else")]
    node = onnx.helper.make_node(
        "If",
        [CONDITION],
        [v.name for v in own.output],
        name="whole",
        then_branch=branches[0],
        else_branch=branches[1],
    )
    always = onnx.helper.make_tensor(CONDITION, onnx.TensorProto.BOOL, [1], [True])
    model = onnx.ModelProto(ir_version=file.model.ir_version)
    model.opset_import.extend(file.model.opset_import)
    model.graph.CopyFrom(onnx.helper.make_graph([node], own.name, own.input, own.output))
    model.graph.initializer.append(always)
    model.graph.initializer.extend(own.initializer)
    model.graph.sparse_initializer.extend(own.sparse_initializer)
    return OnnxFile(
        file.path, model, {**file.tensors, CONDITION: ArrayTensor(np.array([True]))}, file.opsets, opaque=True
    )


def _branch(own: onnx.GraphProto, name: str) -> onnx.GraphProto:
    """The nodes of a graph, under names of their own also in their subgraphs."""
    graph = onnx.GraphProto(name=name)
    graph.node.extend(own.node)
    graph.output.extend(own.output)
    made = {o for n in graph.node for o in n.output}
    for i, v in enumerate(graph.output):
        if v.name not in made:
            graph.node.append(onnx.helper.make_node("Identity", [v.name], [f"{i}/{v.name}"]))
            v.name = f"{i}/{v.name}"
    names = {n: f"{name}/{n}" for n in _defined(graph) if n}
    _renamed(graph, names)
    return graph


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    """Names that the nodes of a graph, and graphs inside it, make or declare."""
    for node in graph.node:
        yield from node.output
        for inner in subgraphs(node):
            yield from (v.name for v in inner.input)
            yield from (t.name for t in inner.initializer)
            yield from (s.values.name for s in inner.sparse_initializer)
            yield from _defined(inner)


def _renamed(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for v in (*graph.input, *graph.output, *graph.initializer, *(s.values for s in graph.sparse_initializer)):
        v.name = names.get(v.name, v.name)
    del graph.value_info[:]
    for node in graph.node:
        for listed in (node.input, node.output):
            for i, given in enumerate(listed):
                listed[i] = names.get(given, given)
        for inner in subgraphs(node):
            _renamed(inner, names)
