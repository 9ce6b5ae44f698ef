"""`python -m monograph.commands.probe PROVIDER`: open a session on one execution provider and say which one it got.

Run in a process of its own: a provider whose libraries are missing writes to stdout and stderr as it pleases, and
may take the process with it. The last line of stdout is the answer.
"""

from __future__ import annotations

import sys

import numpy as np
from onnx import TensorProto, helper

from ..backends import ort


def tiny_model() -> bytes:
    """y = relu(x) over two numbers."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "tiny", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def probe(provider: str) -> str:
    """The provider that really runs a model when this one is asked for."""
    session = ort.library().InferenceSession(tiny_model(), providers=[provider])
    (result,) = session.run(None, {"x": np.array([1.0, -2.0], np.float32)})
    return str(session.get_providers()[0]) if result.tolist() == [1.0, 0.0] else f"wrong result {result.tolist()}"


if __name__ == "__main__":
    print(f"\n{probe(sys.argv[1])}")
