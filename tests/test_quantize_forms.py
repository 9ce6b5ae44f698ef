"""Weights in fewer bits as ONNX: every encoding, layer and target op against NumPy, on ONNX Runtime's kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import pytest
from monograph.backends.onnx.integers import integer_linear, row_codes, row_scales
from monograph.backends.onnx.lower import lower
from monograph.backends.onnx.quantized import onnx_dequantize_linear
from monograph.backends.onnx.rewrites import AS_IT_IS, PORTABLE
from monograph.backends.onnxruntime.quantized import (
    exact_layers,
    gather_block_quantized,
    gather_packed,
    matmul_nbits,
    pack_codes,
    quantized_layers,
)
from monograph.backends.target import Target, kernel_table
from monograph.ir import Graph, Value, building, parse, verify
from monograph.ir.encoded import Encoded
from monograph.ir.encodings import Encoding
from monograph.ir.interpret import interpret
from monograph.ir.ops import concat, dequantize, embedding, linear
from monograph.ir.ops.quant import Dequantize
from monograph.ir.tensors import ArrayTensor, Tensor, held
from monograph.ir.types import DType, TensorType, f16, f32, i8, i64, tensor, u8
from monograph.passes.manager import Pipeline

Array = np.ndarray[Any, Any]
BLOCKED = [
    f"int{bits}(block={block}{zeros})" for bits in (2, 4, 8) for block in (16, 32, 64, 128) for zeros in ("", ",zeros")
]
ROWS, COLUMNS = 24, 128


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stored(text: str, *shape: int, seed: int = 0) -> Encoded:
    e = Encoding.parse(text)
    lines = e.random(np.random.default_rng(seed), shape, 0.1)
    return Encoded(ArrayTensor(lines), TensorType(f32, shape, e))


def run(graph: Graph, weights: dict[str, Tensor], feeds: dict[str, Array], pipeline: Pipeline = AS_IT_IS) -> Array:
    """On ONNX Runtime, with products over blocks in float."""
    model = lower(graph, weights, 23, pipeline=pipeline)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    session = onnxruntime.InferenceSession(
        onnx_ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def op_graph(given: dict[str, Array], build: Any) -> tuple[Graph, dict[str, Tensor]]:
    """An op over parameters, but for x, ids and scales of activations, which are inputs."""
    graph = Graph("op")
    values: dict[str, Value] = {}
    for k, v in given.items():
        t = ArrayTensor(v).type
        values[k] = graph.input(k, t) if k in ("x", "ids", "live") else graph.param(k, t)
    with building(graph):
        graph.output("y", build(**values))
    verify(graph)
    return graph, {k: ArrayTensor(v) for k, v in given.items() if k not in ("x", "ids", "live")}


def check_op(given: dict[str, Array], build: Any, tolerance: float = 1e-5) -> None:
    """The NumPy meaning of an op is what ONNX Runtime computes, its text comes back, and the target has a kernel."""
    graph, weights = op_graph(given, build)
    feeds = {k: given[k] for k in graph.inputs}
    want = interpret(graph, feeds, {k: t.numpy() for k, t in weights.items()})["y"]
    got = run(graph, weights, feeds)
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, float(np.abs(want).max())))
    assert str(parse(str(graph))) == str(graph)
    kernel_table("cpu").check(lower(graph, weights, 23, pipeline=AS_IT_IS))


def packed(bits: int, block: int, seed: int = 0) -> dict[str, Array]:
    rng, blocks = np.random.default_rng(seed), COLUMNS // block
    codes = rng.integers(0, 256, (ROWS, blocks, block * bits // 8)).astype(np.uint8)
    return {"codes": codes, "scales": rng.random((ROWS, blocks)).astype(np.float32) + 0.1}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("rest", ["", "zeros", "bias", "zeros and bias"])
def test_products_over_blocks(bits: int, block: int, rest: str) -> None:
    given = {"x": numbers(2, 3, COLUMNS), **packed(bits, block)}
    rng = np.random.default_rng(1)
    if "zeros" in rest:
        # Of what the last byte has to spare, the kernel reads nothing.
        given["zeros"] = rng.integers(0, 256, (ROWS, -(-(COLUMNS // block) * bits // 8))).astype(np.uint8)
    if "bias" in rest:
        given["b"] = numbers(ROWS, seed=2)
    check_op(given, lambda **v: matmul_nbits(**v, bits=bits, accuracy_level=0))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("gather", [gather_block_quantized, gather_packed])
def test_rows_of_blocks(bits: int, zeros: bool, gather: Any) -> None:
    given = {"ids": np.array([[0, 23, 5], [7, 7, 1]]), **packed(bits, 32)}
    if zeros:
        given["zeros"] = np.random.default_rng(1).integers(0, 1 << bits, (ROWS, COLUMNS // 32, 1)).astype(np.uint8)
    check_op(given, lambda ids, codes, **v: gather(codes, ids, bits=bits, **v))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [DType.i4, i8])
@pytest.mark.parametrize("zeros", [False, True])
def test_standard_blocks(axis: int, dtype: Any, zeros: bool) -> None:
    rng = np.random.default_rng(0)
    shape, blocks = (32, 6) if axis == 0 else (6, 32), (2, 6) if axis == 0 else (6, 2)
    given = {"codes": rng.integers(-8, 8, shape).astype(np.int8), "scales": rng.random(blocks).astype(np.float32)}
    if zeros:
        given["zeros"] = rng.integers(-8, 8, blocks).astype(np.int8)
    given["x"] = numbers(*shape)

    def build(x: Value, codes: Value, scales: Value, zeros: Value | None = None) -> Value:
        narrow = [v if v is None or dtype == i8 else v.cast(DType.i4) for v in (codes, zeros)]
        return x + onnx_dequantize_linear(narrow[0], scales, narrow[1], axis=axis, block=16)

    check_op(given, build)


def test_activations_are_rounded_row_by_row() -> None:
    x = numbers(4, 5, 48)
    x[0, 0] *= 1000
    x[1, 2] = 0
    check_op({"x": x}, lambda x: row_scales(x))
    scales = np.maximum(np.abs(x).max(-1, keepdims=True) / 127, 1e-30).astype(np.float32)
    check_op({"x": x, "live": scales}, lambda x, live: row_codes(x, live).cast(f32))
    rng = np.random.default_rng(0)
    given = {
        "x": rng.integers(1, 256, (4, 5, 48)).astype(np.uint8),
        "live": scales,
        "w": rng.integers(-127, 128, (48, 10)).astype(np.int8),
        "each": rng.random(10).astype(np.float32),
    }
    check_op(given, lambda x, live, w, each: integer_linear(x, live, w, each))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packed_bytes_are_filled(bits: int) -> None:
    graph = Graph("pack")
    v = graph.param("codes", TensorType(i8, (3, 5)))
    with building(graph):
        graph.output("y", pack_codes(v, bits=bits))
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    codes = np.random.default_rng(0).integers(low, high + 1, (3, 5)).astype(np.int8)
    got = interpret(graph, {}, {"codes": codes})["y"]
    assert got.dtype == np.uint8
    for i in range(5):
        place = i * bits // 8
        assert np.array_equal((got[:, place] >> (i * bits % 8)) & ((1 << bits) - 1), codes[:, i].astype(int) - low)


# -- layers -------------------------------------------------------------------------------------------------------


def layers(text: str, kind: str) -> tuple[Graph, dict[str, Tensor]]:
    """One layer of each kind over an encoded weight, its input x or ids."""
    graph, e = Graph("layers"), Encoding.parse(text)
    x = graph.input("x", tensor(f32, "B", "S", COLUMNS)) if kind in ("linear", "transposed", "packed") else None
    ids = graph.input("ids", tensor(i64, "B", "S")) if x is None else None
    shape = (COLUMNS, ROWS) if kind == "transposed" else (ROWS, COLUMNS)
    w = stored(text if kind != "transposed" else str(e.along(0, 2)), *shape)
    weights: dict[str, Tensor] = {"w": w, "b": ArrayTensor(numbers(ROWS, seed=3))}
    p, b = graph.param("w", w.type), graph.param("b", weights["b"].type)
    with building(graph):
        if kind == "packed":
            weights["v"] = stored(text, ROWS, COLUMNS, seed=5)
            q = graph.param("v", weights["v"].type)
            graph.output("y", linear(x, concat(dequantize(p), dequantize(q), axis=0), concat(b, b, axis=0)))
        elif x is not None:
            graph.output("y", linear(x, dequantize(p), b, transposed=kind == "transposed"))
        elif kind == "embedding":
            graph.output("y", embedding(ids, dequantize(p)))
        else:
            graph.output("y", linear(embedding(ids, dequantize(p)), dequantize(p)))
    return graph, weights


def feeds_of(graph: Graph) -> dict[str, Array]:
    if "x" in graph.inputs:
        return {"x": numbers(2, 3, COLUMNS, seed=9)}
    return {"ids": np.array([[0, 23, 5], [7, 7, 1]])}


KINDS = ["linear", "transposed", "packed", "embedding", "tied"]


@pytest.mark.parametrize("text", [*BLOCKED, "int4", "int4(zeros)", "int8(zeros)", "int2"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["cpu", "onnx", "client"])
def test_a_layer_over_blocks(text: str, kind: str, target: str) -> None:
    graph, weights = layers(text, kind)
    feeds = feeds_of(graph)
    want = interpret(graph, feeds, {k: t.stored() for k, t in weights.items()})["y"]
    exact = Target("cpu")
    pipeline = {
        "cpu": Pipeline("ort", [quantized_layers(exact)]),
        "onnx": PORTABLE,
        "client": Pipeline("client", [exact_layers()]),
    }[target]
    made = graph.copy()
    pipeline.run(made)
    assert verify(made)
    left = interpret(made, feeds, {k: held(weights[k], v.type, k) for k, v in made.params.items()})
    np.testing.assert_allclose(left["y"], want, atol=2e-5 * np.abs(want).max())
    got = run(graph, weights, feeds, pipeline)
    # Products of the runtime may round activations to 8 bits; this is the only thing they may do.
    near = 0.02 if target == "cpu" and kind != "embedding" else 2e-5
    np.testing.assert_allclose(got, want, atol=near * np.abs(want).max())
    assert not any(isinstance(n.op, Dequantize) for n in made) or target == "onnx"


@pytest.mark.parametrize("kind", KINDS)
def test_no_byte_of_a_table_is_stored_twice(kind: str) -> None:
    graph, weights = layers("int4(block=32,zeros)", kind)
    model = lower(graph, weights, 23, pipeline=Pipeline("ort", [quantized_layers(Target("cpu"))]))
    codes = ROWS * COLUMNS // 2 * (2 if kind == "packed" else 1)
    sizes = [v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None]
    scales = codes // 16 * 4
    assert sizes.count(codes) == 1
    # Codes and scales once; zero points as bytes where rows are taken, and packed where they are multiplied.
    assert sum(sizes) < codes + scales + scales // 4 + scales // 8 + 4 * ROWS * 2 + 400


@pytest.mark.parametrize("kind", ["linear", "transposed", "packed"])
@pytest.mark.parametrize("target", ["cpu", "onnx"])
def test_a_layer_with_one_scale_a_row_multiplies_integers(kind: str, target: str) -> None:
    graph, weights = layers("int8", kind)
    feeds = feeds_of(graph)
    feeds["x"][0, 1] *= 500
    pipeline = PORTABLE if target == "onnx" else Pipeline("ort", [quantized_layers(Target("cpu"))])
    want = interpret(graph, feeds, {k: t.stored() for k, t in weights.items()})["y"]
    got = run(graph, weights, feeds, pipeline)
    # Each row is off by its own rounding, whatever its neighbours are.
    scale = np.abs(want - weights["b"].numpy()[None, None].repeat(want.shape[-1] // ROWS, -1).reshape(1, 1, -1))
    assert (np.abs(got - want).max(-1) < 0.02 * scale.max(-1)).all()
    made = graph.copy()
    pipeline.run(made)
    simulated = interpret(made, feeds, {k: t.stored() for k, t in weights.items()})["y"]
    np.testing.assert_allclose(got, simulated, rtol=1e-4, atol=1e-4)
    alone = run(graph, weights, {"x": feeds["x"][1:, 2:]}, pipeline)
    np.testing.assert_array_equal(alone[0, 0], got[1, 2])


def test_cuda_has_no_product_of_integers_and_says_so() -> None:
    graph, weights = layers("int8", "linear")
    layer = quantized_layers(Target("cuda", f32))
    report = layer.run(graph)
    assert [m.reason for m in report.misses] == [
        "the provider multiplies no integers by activations rounded as they come"
    ]
    assert report.counts["plain_weights"] == 1
    del weights


def test_two_bits_are_no_standard_integers() -> None:
    graph, _ = layers("int2(block=32)", "linear")
    report = PORTABLE.run(graph)
    assert any("no integers of 2 bits" in m.reason for m in report.misses)


@pytest.mark.parametrize("text", ["int4(block=32,scale=f16,zeros)", "int4(block=16,scale=bf16)"])
def test_half_precision_layers_keep_their_scales(text: str) -> None:
    e = Encoding.parse(text)
    graph = Graph("half")
    x = graph.input("x", tensor(e.scale, "B", COLUMNS))
    w = graph.param("w", TensorType(e.scale, (ROWS, COLUMNS), e))
    with building(graph):
        graph.output("y", linear(x, dequantize(w)))
    report = quantized_layers(Target("cuda", e.scale)).run(graph)
    assert not report.misses
    assert graph.outputs["y"].dtype == e.scale
    assert e.scale == f16 or u8 in {n.output.dtype for n in graph}
