"""ONNX Runtime's own operators through the importer, against ONNX Runtime on the node as it stands."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from monograph.backends.onnx.backend import REFERENCE, WRITTEN, MonographBackend
from onnx import helper, numpy_helper

Array = np.ndarray[Any, Any]
rng = np.random.default_rng(0)


def f(*shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def i(*shape: int, high: int = 4) -> Array:
    return rng.integers(0, high, shape).astype(np.int32)


ANGLES = np.arange(16)[:, None] / 10.0 ** np.arange(4)
COSINES, SINES = np.cos(ANGLES).astype(np.float32), np.sin(ANGLES).astype(np.float32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32)
NIBBLES, BYTES = rng.integers(0, 256, (6, 2, 8)).astype(np.uint8), rng.integers(0, 256, (6, 2, 16)).astype(np.uint8)
ROWS = rng.integers(0, 256, (7, 16)).astype(np.uint8)

FOUR, EIGHT = ({"K": 32, "N": 6, "bits": bits, "block_size": 16} for bits in (4, 8))
Case = tuple[str, dict[str, Array | None], int, dict[str, Any]]
"""(operator, inputs, outputs, attributes); inputs that begin with w are initializers, and so is `total`."""

GROUPED = {"num_heads": 2, "kv_num_heads": 1}
WIDE = np.arange(16)[:, None] / 10.0 ** np.arange(8)


def grouped(length: int, past: int, ends: list[int]) -> dict[str, Array | None]:
    """Inputs of GroupQueryAttention with heads of 16. ends: place of the last key of each row."""
    return {
        "q": f(2, length, 32),
        "k": f(2, length, 16),
        "v": f(2, length, 16),
        "pk": f(2, 1, past, 16),
        "pv": f(2, 1, past, 16),
        "ends": np.array(ends, np.int32),
        "total": np.array(past + length, np.int32),
        "w1": np.cos(WIDE).astype(np.float32),
        "w2": np.sin(WIDE).astype(np.float32),
    }


CASES: dict[str, Case] = {
    "skip layer norm": ("SkipLayerNormalization", {"x": f(2, 3, 8), "s": f(2, 3, 8), "w": f(8), "wb": f(8)}, 1, {}),
    "skip layer norm with bias": (
        "SkipLayerNormalization",
        {"x": f(2, 3, 8), "s": f(2, 3, 8), "w": f(8), "wb": f(8), "wbias": f(8)},
        4,
        {"epsilon": 1e-5},
    ),
    "skip rms norm": ("SkipSimplifiedLayerNormalization", {"x": f(2, 3, 8), "s": f(2, 3, 8), "w": f(8)}, 4, {}),
    "embed": (
        "EmbedLayerNormalization",
        {"ids": i(2, 3), "kinds": i(2, 3, high=2), "w1": f(4, 8), "w2": f(5, 8), "w3": f(2, 8), "w4": f(8), "w5": f(8)},
        2,
        {"epsilon": 1e-5},
    ),
    "gelu": ("Gelu", {"x": f(2, 8)}, 1, {}),
    "bias gelu": ("BiasGelu", {"x": f(2, 8), "w": f(8)}, 1, {}),
    "fast gelu": ("FastGelu", {"x": f(2, 8), "w": f(8)}, 1, {}),
    "quick gelu": ("QuickGelu", {"x": f(2, 8)}, 1, {"alpha": 1.5}),
    "fused matmul": ("FusedMatMul", {"x": f(2, 8, 3), "y": f(2, 4, 8)}, 1, {"transA": 1, "transB": 1, "alpha": 0.5}),
    "rotary": (
        "RotaryEmbedding",
        {"x": f(2, 3, 16), "p": i(2, 3, high=9).astype(np.int64), "w1": COSINES, "w2": SINES},
        1,
        {},
    ),
    "rotary from an offset, interleaved": (
        "RotaryEmbedding",
        {"x": f(2, 2, 3, 8), "p": np.array([4], np.int64), "w1": COSINES, "w2": SINES},
        1,
        {"interleaved": 1},
    ),
    "multi-head": ("MultiHeadAttention", {"q": f(2, 3, 8), "k": f(2, 5, 8), "v": f(2, 5, 8)}, 1, {"num_heads": 2}),
    "multi-head with masks": (
        "MultiHeadAttention",
        {"q": f(2, 5, 8), "k": f(2, 5, 8), "v": f(2, 5, 8), "wb": f(24), "m": MASK, "bias": f(1, 2, 5, 5)},
        1,
        {"num_heads": 2, "scale": 0.7},
    ),
    "multi-head with a past": (
        "MultiHeadAttention",
        {"q": f(2, 1, 8), "k": f(2, 1, 8), "v": f(2, 1, 8), "a": None, "b": None, "c": None}
        | {"pk": f(2, 2, 4, 4), "pv": f(2, 2, 4, 4)},
        3,
        {"num_heads": 2},
    ),
    "multi-head, causal": (
        "MultiHeadAttention",
        {"q": f(2, 5, 8), "k": f(2, 5, 8), "v": f(2, 5, 8)},
        1,
        {"num_heads": 2, "unidirectional": 1},
    ),
    "packed": ("Attention", {"x": f(2, 5, 8), "w": f(8, 24), "wb": f(24), "m": MASK}, 1, {"num_heads": 2}),
    "packed, causal, with lengths": (
        "Attention",
        {"x": f(2, 5, 8), "w": f(8, 24), "wb": f(24), "m": np.array([5, 3], np.int32)},
        1,
        {"num_heads": 2},
    ),
    "grouped, a prompt": ("GroupQueryAttention", grouped(5, 0, [4, 4]), 3, {**GROUPED, "do_rotary": 1}),
    "grouped, one step, interleaved": (
        "GroupQueryAttention",
        grouped(1, 4, [4, 4]),
        3,
        {**GROUPED, "do_rotary": 1, "rotary_interleaved": 1},
    ),
    "grouped, packed, windowed": (
        "GroupQueryAttention",
        {"q": f(2, 5, 32), "k": None, "v": None, "pk": f(2, 1, 0, 8), "pv": f(2, 1, 0, 8)}
        | {"ends": np.array([4, 4], np.int32), "total": np.array(5, np.int32)},
        1,
        {"num_heads": 2, "kv_num_heads": 1, "local_window_size": 3},
    ),
    "4 bits": (
        "MatMulNBits",
        {"x": f(3, 32), "w": NIBBLES, "w1": f(12)},
        1,
        FOUR,
    ),
    "4 bits with zero points": (
        "MatMulNBits",
        {"x": f(3, 32), "w": NIBBLES, "w1": f(12), "w2": rng.integers(0, 256, 6).astype(np.uint8)},
        1,
        FOUR,
    ),
    "8 bits": (
        "MatMulNBits",
        {"x": f(3, 32), "w": BYTES, "w1": f(12)},
        1,
        EIGHT,
    ),
    "rows of 4 bits": (
        "GatherBlockQuantized",
        {"w": ROWS, "ids": i(2, 3).astype(np.int64), "w1": f(7, 2)},
        1,
        {"bits": 4, "block_size": 16, "gather_axis": 0, "quantize_axis": 1},
    ),
}


def made(case: Case) -> tuple[onnx.ModelProto, dict[str, Array]]:
    op, given, outputs, attributes = case
    fixed = {k: v for k, v in given.items() if v is not None and (k.startswith("w") or k == "total")}
    free = {k: v for k, v in given.items() if v is not None and k not in fixed}
    names = [f"y{n}" if n in (0, outputs - 1) or outputs == 3 else "" for n in range(outputs)]
    node = helper.make_node(
        op, ["" if v is None else k for k, v in given.items()], names, domain="com.microsoft", **attributes
    )
    infos = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in free.items()
    ]
    results = [onnx.ValueInfoProto(name=n) for n in names if n]
    graph = helper.make_graph([node], "g", infos, results, [numpy_helper.from_array(v, k) for k, v in fixed.items()])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), free


@pytest.mark.parametrize("mode", [REFERENCE, WRITTEN])
@pytest.mark.parametrize("name", CASES)
def test_an_operator_means_what_it_means_in_the_runtime(name: str, mode: str) -> None:
    model, free = made(CASES[name])
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    prepared = MonographBackend.prepare(model, mode=mode)
    assert "onnx_node" not in prepared.graph.counts()
    for have, want in zip(prepared.run(free), session.run(None, free), strict=True):
        assert have.shape == want.shape
        np.testing.assert_allclose(have, want, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(("length", "past", "ends"), [(5, 0, [4, 2]), (1, 4, [4, 2])], ids=["prompt", "step"])
def test_rows_of_different_lengths_keep_their_own_places(length: int, past: int, ends: list[int]) -> None:
    """What a row has beyond its own keys means nothing; all else is equal."""
    model, free = made(("GroupQueryAttention", grouped(length, past, ends), 3, {**GROUPED, "do_rotary": 1}))
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    have, want = MonographBackend.prepare(model).run(free), session.run(None, free)
    for row, end in enumerate(ends):
        queries = min(length, end + 1)
        np.testing.assert_allclose(have[0][row, :queries], want[0][row, :queries], rtol=2e-4, atol=2e-5)
        for a, b in zip(have[1:], want[1:], strict=True):
            np.testing.assert_allclose(a[row, :, : end + 1], b[row, :, : end + 1], rtol=2e-4, atol=2e-5)
