"""Symbols that no input has bare: the reference, PyTorch and ONNX Runtime read them off the shapes alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from monograph.backends.onnx import export
from monograph.backends.torch import to_torch
from monograph.ir import Graph, building, interpret, ops
from monograph.ir.types import Dim, i64, parse_type

B, P, S = (Dim.symbol(n) for n in "BPS")


@pytest.mark.parametrize(
    "given",
    [
        {"x": "f32[2*S]", "y": "f32[P+S]", "z": "f32[B]"},
        {"x": "f32[B,B*S]", "z": "f32[3*P+S]"},
        {"x": "f32[P+4]", "y": "f32[2*S+P]", "z": "f32[B+S]"},
    ],
)
def test_symbols_follow_alike(given: dict[str, str], tmp_path: Path) -> None:
    graph = Graph("sizes")
    for name, text in given.items():
        graph.input(name, parse_type(text))
    with building(graph):
        found = [ops.iota(start=d, length=1) for d in (B, P, S)]
        graph.output("sizes", ops.concat(*found, axis=0))
    numbers = {"B": 2, "P": 5, "S": 3}
    shapes = {k: tuple(d if isinstance(d, int) else d.substitute(numbers) for d in v.shape)
              for k, v in graph.inputs.items()}  # fmt: skip
    arrays = {k: np.zeros(shape, np.float32) for k, shape in shapes.items()}  # type: ignore[arg-type]
    expected = np.array([2, 5, 3], i64.numpy)
    assert np.array_equal(interpret(graph, arrays)["sizes"], expected)
    module = to_torch(graph)
    assert np.array_equal(module(**{k: torch.from_numpy(v) for k, v in arrays.items()})["sizes"].numpy(), expected)
    session = onnxruntime.InferenceSession(export(graph, {}, tmp_path))
    used = {i.name for i in session.get_inputs()}
    assert np.array_equal(session.run(None, {k: v for k, v in arrays.items() if k in used})[0], expected)
