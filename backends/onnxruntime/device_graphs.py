"""Small graphs that a session runs beside the model's own: they fill, copy and move memory and find the best logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_TYPES = {
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16,
}
_OPSET, _IR = 18, 9

_value: Callable[..., Any] = helper.make_tensor_value_info
_node: Callable[..., Any] = helper.make_node


def _model(name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> bytes:
    graph = helper.make_graph(nodes, name, inputs, outputs)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    return model.SerializeToString()


def zeros(dtype: np.dtype[Any]) -> bytes:
    """length i64 [1] -> y [length]: zeros. The length is read on the host."""
    value = numpy_helper.from_array(np.zeros(1, dtype))
    node = _node("ConstantOfShape", ["length"], ["y"], value=value)
    return _model("zeros", [node], [_value("length", TensorProto.INT64, [1])], [_value("y", _TYPES[dtype], ["N"])])


def copy(dtype: np.dtype[Any]) -> bytes:
    """x [N] -> y [N]."""
    kind = _TYPES[dtype]
    return _model("copy", [_node("Identity", ["x"], ["y"])], [_value("x", kind, ["N"])], [_value("y", kind, ["N"])])


def move(dtype: np.dtype[Any]) -> bytes:
    """x [N,W], old [M,W], taken [L], given [L,1] -> y [M,W]: old with lines given[i] replaced by lines taken[i] of x.

    Where y lies at the address of old, the other lines are not touched.
    """
    kind, index = _TYPES[dtype], TensorProto.INT64
    nodes = [
        _node("Gather", ["x", "taken"], ["lines"], axis=0),
        _node("ScatterND", ["old", "given", "lines"], ["y"]),
    ]
    inputs = [_value("x", kind, ["N", "W"]), _value("old", kind, ["M", "W"])]
    inputs += [_value("taken", index, ["L"]), _value("given", index, ["L", 1])]
    return _model("move", nodes, inputs, [_value("y", kind, ["M", "W"])])


def largest(dtype: np.dtype[Any]) -> bytes:
    """x [R,V], k i64 [1] -> values [R,k], ids i64 [R,k]: largest first. k is read on the host."""
    kind = _TYPES[dtype]
    node = _node("TopK", ["x", "k"], ["values", "ids"], axis=-1)
    inputs = [_value("x", kind, ["R", "V"]), _value("k", TensorProto.INT64, [1])]
    return _model(
        "largest", [node], inputs, [_value("values", kind, ["R", "K"]), _value("ids", TensorProto.INT64, ["R", "K"])]
    )


_MADE: dict[str, Callable[[np.dtype[Any]], bytes]] = {"zeros": zeros, "copy": copy, "move": move, "largest": largest}
GRAPHS: dict[str, Callable[[], bytes]] = {
    f"{name} {dtype.name}": partial(make, dtype) for name, make in _MADE.items() for dtype in _TYPES
}
"""What makes each graph, by its name and the name of its element type."""
