"""Encoded weights: stored bytes against the `gguf` package, in every form of the graph."""

from __future__ import annotations

import re
from typing import Any

import gguf
import numpy as np
import pytest
from monograph.backends.onnx.lower import lower
from monograph.backends.onnxruntime.choices import EXACT
from monograph.backends.onnxruntime.quantized import quantized_layers
from monograph.backends.target import Target, kernel_table
from monograph.ir import Graph, building, parse, verify
from monograph.ir.encoded import Encoded
from monograph.ir.encodings import LAYOUTS, Encoding, EncodingError, int8, q4_0, q4_1, q8_0
from monograph.ir.errors import MonographError, OpError, VerifyError, WeightsError
from monograph.ir.interpret import interpret
from monograph.ir.op import OPS
from monograph.ir.ops import dequantize, embedding, encoded_part, linear
from monograph.ir.ops.quant import PARTS, Dequantize
from monograph.ir.tensors import ArrayTensor, Tensor
from monograph.ir.types import TensorType, bf16, f16, f32, f64, i64, parse_type, tensor
from monograph.ir.weights import Weights
from monograph.passes import pipelines
from monograph.passes.manager import Pipeline

GGUF = {"q4_0": q4_0, "q4_1": q4_1, "q8_0": q8_0}


def numbers(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def encoded(layout: str, rows: int = 7, columns: int = 96, seed: int = 0) -> Encoded:
    """Random numbers as the `gguf` package encodes them."""
    kind = gguf.GGMLQuantizationType[layout.upper()]
    lines = gguf.quantize(numbers(rows, columns, seed=seed), kind)
    return Encoded(ArrayTensor(lines), TensorType(f32, (rows, columns), LAYOUTS[layout]))


def decoded(layout: str, w: Encoded) -> np.ndarray[Any, Any]:
    return gguf.dequantize(w.stored(), gguf.GGMLQuantizationType[layout.upper()])


@pytest.mark.parametrize("layout", GGUF)
def test_numbers_are_those_of_gguf(layout: str) -> None:
    w = encoded(layout)
    assert np.array_equal(w.numpy(), decoded(layout, w))
    e = GGUF[layout]
    parts = (e.codes(w.stored()), e.scales(w.stored()), *((e.minimums(w.stored()),) if e.minimum else ()))
    assert np.array_equal(e.joined(*parts), w.stored())


GENERAL = (
    "int4",
    "int2(axis=0)",
    "int8(block=16,zeros)",
    "int4(block=16)",
    "int4(block=32,scale=f16,zeros)",
    "int2(block=32,zeros)",
    "int4(axis=0,block=16,zeros)",
)
"""Encodings whose block length and zero points are chosen."""


@pytest.mark.parametrize(
    "text", ["q4_0", "q4_1", "q8_0", "int8", "int8(axis=0)", "int8(axis=0,scale=bf16)", "q8_0(scale=f32)", *GENERAL]
)
def test_text_of_a_type_comes_back(text: str) -> None:
    t = parse_type(f"f32[64,96]<{text}>")
    assert parse_type(str(t)) == t
    assert t.encoding == Encoding.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("f32[4,33]<q4_0>", "axis -1 of f32[4,33] is 33, not a multiple"),
        ("f32[33,32]<q8_0(axis=0)>", "axis 0 of f32[33,32] is 33"),
        ("i64[4,32]<q8_0>", "stores floats"),
        ("f32[S,32]<q8_0>", "fixed size"),
        ("f32[]<int8>", "does not have"),
        ("f32[4,32]<q8_0(axis=2)>", "does not have"),
        ("f32[4,32]<q8_1>", "did you mean"),
        ("f32[4,32]<q8_0(scale=f23)>", "did you mean"),
        ("f32[4,32]<q8-0>", "is not an encoding"),
        ("f32[4,32]<q4_0(block=16)>", "expected axis or scale, once each"),
        ("f32[4,32]<int4(block=16,block=32)>", "once each"),
        ("f32[4,32]<int4(block=0)>", "block=0, expected a whole number"),
        ("f32[4,32]<int4(zeros=3)>", "takes none"),
        ("f32[4,48]<int4(block=32)>", "is 48, not a multiple"),
        ("f32[4,33]<int4>", "33 codes of 4 bits are no whole bytes"),
        ("f32[4,6]<int2(block=2)>", "2 codes of 2 bits are no whole bytes"),
    ],
)
def test_types_that_cannot_be_are_refused(text: str, message: str) -> None:
    with pytest.raises(EncodingError, match=re.escape(message)):
        parse_type(text)


def layers(layout: str = "q4_1") -> Graph:
    """embedding and a tied head, a linear layer between."""
    graph = Graph("layers")
    ids = graph.input("ids", tensor(i64, "B", "S"))
    table = graph.param("embed.weight", parse_type("f32[11,64]<q8_0>"))
    w = graph.param("up.weight", parse_type(f"f32[64,64]<{layout}>"))
    b = graph.param("up.bias", parse_type("f32[64]"))
    with building(graph):
        x = linear(embedding(ids, dequantize(table)), dequantize(w), b)
        graph.output("logits", linear(x, dequantize(table)))
    return graph


def weights(layout: str = "q4_1") -> dict[str, Tensor]:
    up = encoded(layout, 64, 64, seed=1)
    return {"embed.weight": encoded("q8_0", 11, 64), "up.weight": up, "up.bias": ArrayTensor(numbers(64, seed=2))}


def expected(w: dict[str, Tensor], ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    table, up, bias = (w[k].numpy().astype(np.float64) for k in ("embed.weight", "up.weight", "up.bias"))
    return (table[ids] @ up.T + bias) @ table.T


IDS = np.array([[0, 3, 10], [5, 5, 1]])


@pytest.mark.parametrize("layout", GGUF)
def test_graph_verifies_prints_and_computes(layout: str) -> None:
    graph, w = layers(layout), weights(layout)
    verify(graph)
    text = str(graph)
    assert f"param @up.weight: f32[64,64]<{layout}>" in text
    assert str(parse(text)) == text
    got = interpret(graph, {"ids": IDS}, {k: t.stored() for k, t in w.items()})["logits"]
    np.testing.assert_allclose(got, expected(w, IDS), rtol=1e-4, atol=1e-4)
    Weights(w).check(graph)


def test_only_dequantize_reads() -> None:
    graph = layers()
    w = graph.params["up.weight"]
    with (
        pytest.raises(OpError, match=r"w is .*<q4_1>, an encoded weight, which only dequantize reads"),
        building(graph),
    ):
        linear(embedding(graph.inputs["ids"], dequantize(graph.params["embed.weight"])), w)
    node = next(n for n in graph if n.operands[:1] == [w])
    reader = node.output.users[0]
    graph.set_operand(reader, 1, w)
    with pytest.raises(VerifyError, match="only dequantize reads"):
        verify(graph)
    plain = layers()
    plain.output("weight", plain.params["up.weight"])
    with pytest.raises(VerifyError, match=r"output weight is .*<q4_1>, an encoded weight"):
        verify(plain)


def test_plain_weights_do_not_stand_for_encoded_ones() -> None:
    w = weights()
    w["up.weight"] = ArrayTensor(w["up.weight"].numpy())
    with pytest.raises(WeightsError, match=r"wrong: up\.weight is"):
        Weights(w).check(layers())
    with pytest.raises(MonographError, match="stored as u8"):
        interpret(layers(), {"ids": IDS}, {k: t.numpy() for k, t in w.items()})
    with pytest.raises(WeightsError, match="does not hold the lines"):
        Encoded(ArrayTensor(np.zeros((4, 33), np.uint8)), parse_type("f32[4,32]<q8_0>"))


@pytest.mark.parametrize("dtype", [f16, bf16, f32])
@pytest.mark.parametrize("axis", [-1, 0])
def test_one_scale_a_channel(axis: int, dtype: Any) -> None:
    codes = np.random.default_rng(0).integers(-127, 128, (6, 1, 10)).astype(np.int8)
    scales = np.abs(numbers(6, 1, 1)).astype(dtype.numpy)
    e = Encoding("int8", 8, 0, dtype, axis)
    shape = (6, 10) if axis == -1 else (10, 6)
    w = Encoded(ArrayTensor(e.joined(codes, scales)), TensorType(dtype, shape, e))
    want = (codes.astype(dtype.numpy) * scales)[:, 0]
    assert np.array_equal(w.numpy(), want if axis == -1 else want.T)
    assert int8.layout == e.layout


def test_rows_move_with_their_blocks() -> None:
    w = encoded("q4_1")
    order = np.array([3, 1, 0, 6, 5, 4, 2])
    assert np.array_equal(w.rows(order).numpy(), w.numpy()[order])
    assert w.rows(order).type == w.type
    with pytest.raises(WeightsError, match="cannot be ordered by 3 numbers"):
        w.rows(order[:3])


# -- ONNX ---------------------------------------------------------------------------------------------------------


def session(model: Any) -> Any:
    import onnx_ir
    import onnxruntime

    return onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


def ops(model: Any) -> dict[str, int]:
    kinds = [node.op_type for node in model.graph]
    return {k: kinds.count(k) for k in set(kinds)}


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("layout", GGUF)
def test_portable_onnx_keeps_the_codes(layout: str, opset: int) -> None:
    w = weights(layout)
    model = lower(layers(layout), w, opset)
    got = session(model).run(None, {"ids": IDS})[0]
    want = expected(w, IDS)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    large = max(v.const_value.nbytes for v in model.graph.initializers.values())
    if opset < 21:  # Without blocks in DequantizeLinear: numbers.
        assert large == 4 * 64 * 64
    else:
        assert ops(model)["DequantizeLinear"] == 2
        assert large == 64 * 64 // (1 if layout == "q8_0" else 2)


def reference(layout: str, target: str | Target, ids: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """(the ONNX model for ONNX Runtime, what the reference says about its graph)"""
    graph, w = layers(layout), weights(layout)
    target = Target.of(target)
    model = lower(graph, w, 23, pipeline=Pipeline("ort", [quantized_layers(target)]))
    quantized_layers(target).run(graph)
    assert verify(graph)
    assert not any(isinstance(n.op, Dequantize) for n in graph)
    return model, interpret(graph, {"ids": ids}, {k: t.stored() for k, t in w.items()})["logits"]


@pytest.mark.parametrize("layout", GGUF)
def test_onnx_runtime_multiplies_blocks(layout: str) -> None:
    want = expected(weights(layout), IDS)
    model, computed = reference(layout, "cpu", IDS)
    np.testing.assert_allclose(computed, want, atol=1e-5 * np.abs(want).max())
    assert ops(model)["MatMulNBits"] == 2
    assert ops(model)["GatherBlockQuantized"] == 1
    products = [node.attributes for node in model.graph if node.op_type == "MatMulNBits"]
    levels = {a["bits"].as_int(): a["accuracy_level"].as_int() if "accuracy_level" in a else 0 for a in products}
    assert levels == {8: 4} | ({} if layout == "q8_0" else {4: 4})
    kernel_table("cpu").check(model)
    got = session(model).run(None, {"ids": IDS})[0]
    np.testing.assert_allclose(got, want, atol=0.03 * np.abs(want).max())
    exact = session(reference(layout, Target("cpu", choices=EXACT), IDS)[0]).run(None, {"ids": IDS})[0]
    np.testing.assert_allclose(exact, want, atol=1e-5 * np.abs(want).max())


def test_a_tied_table_is_stored_once() -> None:
    model, _ = reference("q4_0", "cpu", IDS)
    sizes = sorted(v.const_value.nbytes for v in model.graph.initializers.values())
    assert sizes.count(11 * 64) == 1
    assert sum(sizes) < 11 * 64 + 64 * 32 + 4 * (11 * 2 + 64 * 2 + 64) + 200


# -- PyTorch ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [f32, f64])
@pytest.mark.parametrize("text", ["q4_0", "q4_1", "q8_0", "int8", "int8(axis=0)", *GENERAL])
def test_every_part_on_torch(text: str, dtype: Any) -> None:
    from monograph.backends.torch import to_inputs, to_torch

    t = parse_type(f"{dtype}[64,32]<{text}>")
    assert t.encoding is not None
    e = t.encoding
    graph = Graph("parts")
    w = graph.param("w", t)
    x = graph.input("x", parse_type(f"{dtype}[B,64]"))
    stored = [p for p in PARTS if (p != "minimums" or e.minimum) and (p != "zeros" or e.zeros)]
    for part in stored:
        graph.output(part, encoded_part(w, part=part))
    graph.output("numbers", dequantize(w))
    graph.output("product", linear(x, dequantize(w), transposed=True))
    lines = np.random.default_rng(0).integers(0, 100, t.stored.shape).astype(np.uint8)  # No scale is infinite.
    if text.startswith("int"):
        scales = np.abs(numbers(*e.scales(lines).shape))
        lines = e.joined(e.codes(lines), scales, zeros=e.zero_points(lines) if e.zeros else None)
    given = {"x": numbers(3, 64).astype(dtype.numpy)}
    want = interpret(graph, given, {"w": lines})
    module = to_torch(graph, {"w": Encoded(ArrayTensor(lines), t)})
    got = module(**to_inputs(given))
    for name, y in want.items():
        np.testing.assert_allclose(got[name].numpy(), y, rtol=1e-5 * (name == "product"), atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("layout", GGUF)
def test_layers_on_torch_and_the_gradient_behind_them(layout: str) -> None:
    import torch
    from monograph.backends.torch import load_state, state_of, to_inputs, to_torch

    graph, w = layers(layout), weights(layout)
    module = to_torch(pipelines.train(graph), w)
    assert [k for k, _ in module.named_parameters()] == ["up.bias"]
    ids = to_inputs({"ids": IDS})
    logits = module(**ids)["logits"]
    np.testing.assert_allclose(logits.detach().numpy(), expected(w, IDS), rtol=1e-4, atol=1e-4)
    logits.sum().backward()
    table = torch.from_numpy(w["embed.weight"].numpy())
    torch.testing.assert_close(module.get_parameter("up.bias").grad, IDS.size * table.sum(0), rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = module(**ids)["logits"]
    assert (narrow - logits).abs().max() < 0.03 * logits.abs().max()
    again = to_torch(pipelines.train(graph), weights(layout) | {"up.bias": ArrayTensor(np.zeros(64, np.float32))})
    load_state(again, state_of(module))
    torch.testing.assert_close(again(**ids)["logits"], logits)
    with pytest.raises(WeightsError, match=r"up\.weight is f32\[64,64\], expected"):
        load_state(again, Weights(w) | {"up.weight": ArrayTensor(w["up.weight"].numpy())})


def test_every_op_that_reads_encoded_weights_is_tried_here() -> None:
    tried = {"dequantize", "encoded_part"}
    assert {k for k, op in OPS.items() if op.reads_encoded} == tried
