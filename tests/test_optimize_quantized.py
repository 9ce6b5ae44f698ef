"""Files whose activations are quantized: what says so stays, and what lies around it is raised."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from monograph.optimizing import optimize

NORM = """
    squared = Mul(x, x)
    mean = ReduceMean <axes = [-1]> (squared)
    shifted = Add(mean, eps)
    root = Sqrt(shifted)
    inverse = Div(one, root)
    normed = Mul(x, inverse)
    scaled = Mul(normed, w)
"""
DYNAMIC = """
    q, s, z = DynamicQuantizeLinear(scaled)
    product = MatMulInteger(q, k, z)
    float = Cast <to = 1> (product)
    by = Mul(s, ks)
    y = Mul(float, by)
"""
STATIC = """
    q = QuantizeLinear(scaled, qs, qz)
    dq = DequantizeLinear(q, qs, qz)
    dk = DequantizeLinear(k, ks, kz)
    product = MatMul(dq, dk)
    p = QuantizeLinear(product, qs, qz)
    y = DequantizeLinear(p, qs, qz)
"""


@pytest.mark.parametrize(("body", "kept"), [
    (DYNAMIC, {"DynamicQuantizeLinear": 1, "MatMulInteger": 1}), (STATIC, {"QuantizeLinear": 2, "DequantizeLinear": 3}),
])  # fmt: skip
def test_what_quantizes_stays_and_norms_are_raised(body: str, kept: dict[str, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    numbers = {"k": rng.integers(-100, 100, (32, 40)).astype(np.int8), "w": rng.random(32, np.float32) + 0.5}
    numbers |= {"one": np.float32(1), "eps": np.float32(1e-5), "qs": np.float32(0.04), "qz": np.uint8(128)}
    numbers |= {"ks": np.float32(0.01371), "kz": np.int8(0)}
    text = f'<ir_version: 8, opset_import: ["": 17]>\ng (float[b, s, 32] x) => (float[b, s, 40] y) {{{NORM}{body}}}'
    model = onnx.parser.parse_model(text)
    read = {n for node in model.graph.node for n in node.input}
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in numbers.items() if k in read
    )
    source = tmp_path / "quantized.onnx"
    onnx.save(model, source)
    report = optimize(source, tmp_path / "fast", strict=True)
    found = Counter(n.op_type for n in onnx.load(tmp_path / "fast" / "model.onnx").graph.node)
    assert {k: found[k] for k in kept} == kept
    assert report.layers["rms_norm"] == 1
    x = rng.standard_normal((2, 5, 32)).astype(np.float32)
    y, expected = (
        ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for p in (tmp_path / "fast" / "model.onnx", source)
    )
    # A number that is rounded the other way is one step off.
    assert float(np.abs(y - expected).max()) <= 0.041
    assert float((np.abs(y - expected) > 1e-4).mean()) < 0.05
