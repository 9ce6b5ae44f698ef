"""What stays as a file has it: codes and their kernels, single kernels without a layer, sequences, names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from monograph.explaining import explain
from monograph.frontends.onnx.file import open_onnx
from monograph.frontends.onnx.load import read_graph
from monograph.optimizing import optimize
from monograph.original import Original
from onnx import TensorProto, helper
from two_files import apart, results


def scored(path: Path, weight: Any, before: list[Any], after: list[Any], outputs: dict[str, Any]) -> Path:
    """One head of attention over x [B,S,64] to `mixed`, whose keys are multiplied by what `before` makes: `wk`."""
    node = helper.make_node
    nodes = [
        *before,
        *(node("MatMul", ["x", f"w{n}"], [n]) for n in "qkv"),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["scores"]),
        node("Softmax", ["scores"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["mixed"]),
        *after,
    ]
    rng = np.random.default_rng(1)
    arrays = {f"w{n}": rng.standard_normal((64, 64)).astype(np.float32) * 0.1 for n in "qv"}
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "s", 64])
    stored = [onnx.numpy_helper.from_array(a, n) for n, a in arrays.items()]
    made = [helper.make_value_info(n, t) for n, t in outputs.items()]
    graph = helper.make_graph(nodes, "scored", [given], made, [*stored, *weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


TOKENS = helper.make_tensor_type_proto(TensorProto.FLOAT, ["b", "s", 64])


def test_weights_of_four_bits_stay_small_and_are_read_as_before(tmp_path: Path) -> None:
    """The runtime rounds activations where it opens such a file; what the file says is right, too."""
    rng = np.random.default_rng(2)
    codes = helper.make_tensor("codes", TensorProto.INT4, [64, 64], rng.integers(-8, 8, 4096).tolist())
    scales = onnx.numpy_helper.from_array(np.full((2, 64), 0.02, np.float32), "scales")
    before = [helper.make_node("DequantizeLinear", ["codes", "scales"], ["wk"], axis=0, block_size=32)]
    source = scored(tmp_path / "a.onnx", [codes, scales], before, [], {"mixed": TOKENS})
    report = optimize(source, tmp_path / "fast")
    assert not report.kept and report.counts["MultiHeadAttention"] == 1 and report.counts["DequantizeLinear"] == 1
    assert sum(f.stat().st_size for f in (tmp_path / "fast").iterdir()) < 2 * 4 * 64 * 64 + 2 * 64 * 64
    feeds = {"x": rng.standard_normal((2, 6, 64)).astype(np.float32)}
    assert apart(source, tmp_path / "fast" / "model.onnx", feeds) < 1e-5


def test_numbers_without_what_the_runtime_rounds_are_right_too(tmp_path: Path) -> None:
    """ONNX Runtime multiplies by codes of 4 bits with activations of 8; a file with the weights as floats does not."""
    rng = np.random.default_rng(2)
    numbers = rng.integers(-8, 8, (64, 64))
    codes = helper.make_tensor("codes", TensorProto.INT4, [64, 64], numbers.ravel().tolist())
    scales = onnx.numpy_helper.from_array(np.full((2, 64), 0.02, np.float32), "scales")
    before = [helper.make_node("DequantizeLinear", ["codes", "scales"], ["wk"], axis=0, block_size=32)]
    source = scored(tmp_path / "a.onnx", [codes, scales], before, [], {"mixed": TOKENS})
    original = Original.of(source, read_graph(open_onnx(source))[0])
    for by, right in ((0.02, True), (0.0201, False)):
        weight = onnx.numpy_helper.from_array((numbers * by).astype(np.float32), "wk")
        other = scored(tmp_path / "b.onnx", [weight], [], [], {"mixed": TOKENS})
        wrong, error = original.difference(other)
        assert (not wrong) == right and (error <= original.bound) == right


def test_a_file_with_a_sequence_goes_out_as_it_came(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.eye(64, dtype=np.float32), "wk")
    after = [helper.make_node("SequenceConstruct", ["mixed", "x"], ["y"], name="/both")]
    source = scored(tmp_path / "a.onnx", [weight], [], after, {"y": helper.make_sequence_type_proto(TOKENS)})
    report = optimize(source, tmp_path / "fast")
    assert "/both (SequenceConstruct) is a sequence" in report.kept and len(report.left) == 1
    (left,) = explain(source).left
    assert "/both" in left.reason
    x = {"x": np.random.default_rng(3).standard_normal((2, 5, 64)).astype(np.float32)}
    for old, new in zip(results(source, x)[0], results(tmp_path / "fast" / "model.onnx", x)[0], strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("kind", ["LogSoftmax", "HardSwish", "InstanceNormalization"])
def test_what_is_one_kernel_stays_one(kind: str, tmp_path: Path) -> None:
    """The IR has several primitives for it, and no layer."""
    ones = onnx.numpy_helper.from_array(np.linspace(1, 2, 64, dtype=np.float32), "ones")
    weight = onnx.numpy_helper.from_array(np.eye(64, dtype=np.float32), "wk")
    turned = kind == "InstanceNormalization"
    after = [helper.make_node(kind, ["turned" if turned else "mixed"] + ["ones", "ones"] * turned, ["y"], name="/last")]
    if turned:
        after.insert(0, helper.make_node("Transpose", ["mixed"], ["turned"], perm=[0, 2, 1]))
    made = helper.make_tensor_type_proto(TensorProto.FLOAT, ["b", 64, "s"] if turned else ["b", "s", 64])
    source = scored(tmp_path / "a.onnx", [weight, ones], [], after, {"y": made})
    report = optimize(source, tmp_path / "fast")
    assert report.counts[kind] == 1 and report.counts["MultiHeadAttention"] == 1 and not report.kept
    assert [x.reason for x in report.left] == ["LogSoftmax gives no weights that a product with values reads"] * (
        kind == "LogSoftmax"
    )
    x = {"x": np.random.default_rng(3).standard_normal((2, 5, 64)).astype(np.float32)}
    assert apart(source, tmp_path / "fast" / "model.onnx", x) < 1e-5


def test_outputs_that_are_an_input_or_a_weight_keep_their_names(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.eye(64, dtype=np.float32), "wk")
    square = helper.make_tensor_type_proto(TensorProto.FLOAT, [64, 64])
    source = scored(tmp_path / "a.onnx", [weight], [], [], {"mixed": TOKENS, "x": TOKENS, "wk": square})
    report = optimize(source, tmp_path / "fast")
    assert not report.kept and report.counts["MultiHeadAttention"] == 1
    x = np.random.default_rng(3).standard_normal((2, 5, 64)).astype(np.float32)
    mixed, same_x, same_weight = results(tmp_path / "fast" / "model.onnx", {"x": x})
    np.testing.assert_array_equal(same_x, x)
    np.testing.assert_array_equal(same_weight, np.eye(64))
    np.testing.assert_allclose(mixed, results(source, {"x": x})[0], atol=1e-5)
