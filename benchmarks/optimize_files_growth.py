"""A stack of transformer layers as exporters write them, of any number of nodes: how `optimize` grows with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, HEADS, INNER = 16, 2, 32
DIMS = ["batch", "tokens", WIDTH]


class Stack:
    """Layers of attention, layer norm and GELU in primitives. nodes: how many at least."""

    def __init__(self, nodes: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)
        for name, number in {"half": 0.5, "one": 1.0, "root": 2.0**0.5, "eps": 1e-5, "scale": 8.0**-0.5}.items():
            self.tensors.append(numpy_helper.from_array(np.array(number, np.float32), name))
        for name, shape in {"apart": [0, 0, HEADS, WIDTH // HEADS], "joined": [0, 0, WIDTH]}.items():
            self.tensors.append(numpy_helper.from_array(np.array(shape), name))
        x = "x"
        while len(self.nodes) < nodes:
            x = self.layer(x)
        given, made = (helper.make_tensor_value_info(n, TensorProto.FLOAT, DIMS) for n in ("x", x))
        self.graph = helper.make_graph(self.nodes, "stack", [given], [made], self.tensors)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.tensors)}"
        numbers = self.rng.standard_normal(shape).astype(np.float32) * 0.1
        self.tensors.append(numpy_helper.from_array(numbers, name))
        return name

    def norm(self, x: str) -> str:
        mean = self.op("ReduceMean", x, axes=[-1])
        apart = self.op("Sub", x, mean)
        square = self.op("ReduceMean", self.op("Mul", apart, apart), axes=[-1])
        unit = self.op("Div", apart, self.op("Sqrt", self.op("Add", square, "eps")))
        return self.op("Add", self.op("Mul", unit, self.weight(WIDTH)), self.weight(WIDTH))

    def linear(self, x: str, wide: int, out: int) -> str:
        return self.op("Add", self.op("MatMul", x, self.weight(wide, out)), self.weight(out))

    def heads(self, x: str, order: list[int]) -> str:
        return self.op("Transpose", self.op("Reshape", self.linear(x, WIDTH, WIDTH), "apart"), perm=order)

    def layer(self, x: str) -> str:
        h = self.norm(x)
        q, k, v = (self.heads(h, order) for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
        weights = self.op("Softmax", self.op("Mul", self.op("MatMul", q, k), "scale"), axis=-1)
        mixed = self.op("Reshape", self.op("Transpose", self.op("MatMul", weights, v), perm=[0, 2, 1, 3]), "joined")
        x = self.op("Add", x, self.linear(mixed, WIDTH, WIDTH))
        h = self.linear(self.norm(x), WIDTH, INNER)
        gate = self.op("Add", self.op("Erf", self.op("Div", h, "root")), "one")
        h = self.op("Mul", self.op("Mul", h, gate), "half")
        return self.op("Add", x, self.linear(h, INNER, WIDTH))

    def save(self, path: Path) -> int:
        """Write the file; gives its nodes."""
        onnx.save(helper.make_model(self.graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return len(self.nodes)
