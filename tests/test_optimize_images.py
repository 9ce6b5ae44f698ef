"""Images of any size: which sizes a file takes is tried, and none of them is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from monograph.optimizing import optimize
from two_files import apart

MODEL = """<ir_version: 9, opset_import: ["": 17]>
g (float[b, 1, h, w] x) => (float[b, n, 8] y, float[b, 1, h, w] wide)
<int64[3] flat = {0, 8, -1}, float[1] half = {0.35}, int64[2] pixels = {2, 3}, float[1] nothing = {0}> {
    patches = Conv <strides = [4, 4]> (x, kernel)
    rows = Reshape(patches, flat)
    turned = Transpose <perm = [0, 2, 1]> (rows)
    t = Add(turned, positions)
    keys = Transpose <perm = [0, 2, 1]> (t)
    products = MatMul(t, keys)
    scores = Mul(products, half)
    p = Softmax <axis = -1> (scores)
    y = MatMul(p, t)
    size = Shape(x)
    wide = Expand(nothing, size)
}"""

COUNTED = MODEL.replace(
    "    t = Add(turned, positions)",
    """    sides = Shape <start = 2, end = 4> (patches)
    count = ReduceProd(sides)
    batch = Shape <start = 0, end = 1> (x)
    shape = Concat <axis = 0> (batch, count, eight)
    sum = Add(turned, positions)
    t = Reshape(sum, shape)""",
).replace("<int64[3]", "<int64[1] eight = {8}, int64[3]")
"""A single patch has no sum of that shape, where the other model spreads it over all positions."""


def written(path: Path, positions: int, text: str = MODEL) -> Path:
    """Attention over patches of 4 pixels. positions: how many patches there must be; 1: any number."""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    arrays = {"kernel": rng.standard_normal((8, 1, 4, 4)), "positions": rng.standard_normal((1, positions, 8))}
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("positions", "sizes"), [(1, [(7, 9), (16, 16), (30, 21)]), (36, [(24, 24), (27, 25), (16, 37), (145, 5)])]
)
@pytest.mark.parametrize("text", [MODEL, COUNTED], ids=["any", "counted"])
def test_images_of_all_sizes_that_a_file_takes(
    positions: int, sizes: list[tuple[int, int]], text: str, tmp_path: Path
) -> None:
    """36 positions take images of 24 pixels to 27, or of other sides with as many patches; 7 pixels are tried first."""
    source = written(tmp_path / "a.onnx", positions, text)
    report = optimize(source, tmp_path / "fast")
    assert not report.kept and not report.left and report.layers["attention"] == 1
    for height, width in sizes:
        feeds = {"x": np.random.default_rng(1).standard_normal((2, 1, height, width)).astype(np.float32)}
        assert apart(source, tmp_path / "fast" / "model.onnx", feeds) < 1e-5


def test_grids_are_read_as_their_names_of_modes_are_now(tmp_path: Path) -> None:
    """Bilinear of opset 16 is linear since opset 20, which is written."""
    text = """<ir_version: 9, opset_import: ["": 17]>
g (float[b, 1, h, w] x, float[b, n, m, 2] grid) => (float[b, 1, n, m] y) {
    found = GridSample <mode = "bilinear"> (x, grid)
    y = Softmax <axis = -1> (found)
}"""
    source = tmp_path / "a.onnx"
    onnx.save(onnx.parser.parse_model(text), source)
    assert not optimize(source, tmp_path / "fast").kept
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((2, 1, 5, 6)), "grid": rng.uniform(-1, 1, (2, 3, 4, 2))}
    feeds = {k: v.astype(np.float32) for k, v in feeds.items()}
    assert apart(source, tmp_path / "fast" / "model.onnx", feeds) < 1e-5
