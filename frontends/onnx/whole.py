"""A graph that cannot be typed value by value, as one foreign node."""

from __future__ import annotations

import numpy as np
import onnx

from ...ir.tensors import ArrayTensor
from .errors import OnnxFileError
from .file import OnnxFile, rename, subgraphs
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
    return OnnxFile(file.path, model, {**file.tensors, CONDITION: ArrayTensor(np.array([True]))}, file.opsets, opaque=True)


def _branch(own: onnx.GraphProto, name: str) -> onnx.GraphProto:
    """The nodes of a graph under names of their own."""
    graph = onnx.GraphProto(name=name)
    graph.node.extend(own.node)
    graph.output.extend(own.output)
    made = {o for n in graph.node for o in n.output if o}
    names = {o: f"{name}/{o}" for o in made}
    for node in graph.node:
        for i, given in enumerate(node.input):
            node.input[i] = names.get(given, given)
        for i, given in enumerate(node.output):
            node.output[i] = names.get(given, given)
        for inner in subgraphs(node):
            rename(inner, names)
    for i, v in enumerate(graph.output):
        if v.name not in names:
            copy = onnx.helper.make_node("Identity", [v.name], [f"{name}/{i}/{v.name}"])
            graph.node.append(copy)
            names[v.name] = copy.output[0]
        v.name = names[v.name]
    return graph
