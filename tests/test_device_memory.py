"""Memory on a device against memory on the host: views, copies, moves that overlap, every element type of a buffer."""

from __future__ import annotations

import gc
import itertools
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir
import onnxruntime
import pytest
from device_memory import Device
from monograph.backends.onnx.lower import lower
from monograph.backends.onnxruntime import device_graphs
from monograph.backends.onnxruntime.memory_cpu import CpuMemory
from monograph.backends.onnxruntime.memory_cuda import CudaMemory
from monograph.backends.onnxruntime.next_token import NEXT, NONE, choose_tokens, next_token
from monograph.backends.onnxruntime.results import likeliest, spread
from monograph.backends.onnxruntime.runtime import Loaded
from monograph.backends.target import kernel_table
from monograph.frontends.task import LOGITS
from monograph.ir import Graph, interpret
from monograph.ir.errors import OpError
from monograph.ir.slots import Growth, Slot
from monograph.ir.types import Dim, DType, bf16, f16, f32, i64, tensor
from monograph.ir.weights import Weights
from monograph.passes.manager import Pipeline

Array = np.ndarray[Any, Any]
TYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int8, np.bool_)
SHAPES = (((3, 2, 9, 4), 2), ((3, 9, 5), 1), ((2, 3, 7, 1), 2), ((3, 8), 1))
MOVES = ((0, 0, 3), (2, 4, 3), (4, 2, 3), (1, 0, 5), (0, 1, 6), (3, 3, 0), (0, 2, 1))


def numbers(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).standard_normal(shape) * 9).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: np.dtype(t).name)
def test_moves_are_those_of_the_host(dtype: Any, shape: tuple[tuple[int, ...], int]) -> None:
    sizes, axis = shape
    for same, (start, to, length) in itertools.product((False, True), MOVES):
        found: list[list[Array]] = []
        for memory in (Device(), CpuMemory()):
            a = memory.upload(numbers(sizes, dtype))
            b = a if same else memory.upload(numbers(sizes, dtype, 1))
            memory.shift(a, start, b, to, length, row=1, axis=axis)
            seen = [memory.download(memory.row(b, 1)).copy(), memory.download(b).copy()]
            memory.copy(memory.row(a, 0), memory.row(b, 1))
            seen.append(memory.download(b).copy())
            memory.write(memory.row(b, 0, 2), np.zeros((), dtype))
            seen.append(memory.download(b).copy())
            found.append([*seen, memory.download(memory.reshaped(b, (int(np.prod(sizes)),))).copy()])
        for mine, theirs in zip(*found, strict=True):
            assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs), (same, start, to, length)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: np.dtype(t).name)
def test_new_buffers_are_zeros_and_small_ones_lie_on_the_host(dtype: Any) -> None:
    memory = Device()
    for shape in ((3, 5), (1,), (2, 0, 4), (7, 1, 3)):
        zeros = memory.download(memory.allocate(shape, np.dtype(dtype)))
        assert zeros.shape == shape and not zeros.any()
    hosted = memory.allocate((2,), np.dtype(dtype), host=True)
    memory.forget()
    memory.write(hosted, np.ones(2, dtype))
    assert memory.uploads == [], "what a kernel reads before it starts does not go to the device"
    assert np.array_equal(memory.download(hosted), np.ones(2, dtype)) and memory.downloads == []


def test_a_graph_writes_into_a_part_of_a_buffer() -> None:
    memory = CudaMemory("cpu", "CPUExecutionProvider")
    loaded = Loaded(device_graphs.copy(np.dtype(np.float32)), "CPUExecutionProvider")
    source, target = memory.upload(numbers((6,), np.float32)), memory.allocate((4, 6), np.dtype(np.float32))
    memory.bind(loaded, {"x": source}, {"y": memory.reshaped(memory.row(target, 2), (6,))}).run()
    found = memory.download(target)
    assert np.array_equal(found[2], memory.download(source)) and not found[[0, 1, 3]].any()
    results = memory.run(loaded, {"x": memory.reshaped(memory.row(target, 2), (6,))})
    assert np.array_equal(memory.download(results["y"]), found[2])


def test_a_captured_graph_goes_with_its_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = CudaMemory("cpu", "CPUExecutionProvider")
    loaded = Loaded(device_graphs.copy(np.dtype(np.float32)), "CPUExecutionProvider")
    released = list[int]()
    monkeypatch.setattr(loaded, "release", released.append)
    x, y = (memory.allocate((4,), np.dtype(np.float32)) for _ in range(2))
    call, plain = memory.bind(loaded, {"x": x}, {"y": y}, 7), memory.bind(loaded, {"x": x}, {"y": y})
    call.run()
    plain.run()
    assert released == []
    del plain
    gc.collect()
    assert released == [], "an ordinary binding has no graph"
    del call
    gc.collect()
    assert released == [7]


# -- the best logits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=lambda t: np.dtype(t).name)
def test_best_logits(dtype: Any) -> None:
    memory, logits = Device(), numbers((3, 200), dtype)
    buffer = memory.upload(logits)
    for k in (1, 5, 80, 200, 500):
        values, ids = memory.largest(buffer, k)
        order = np.sort(logits, axis=-1)[:, ::-1][:, :k]
        assert np.array_equal(values, order) and np.array_equal(np.take_along_axis(logits, ids, -1), order)
    memory.forget()
    memory.largest(buffer, 500)
    assert memory.made == 0 and memory.downloads == [f"{np.dtype(dtype).name}[3, 200]", "int64[3, 200]"]


def test_best_logits_are_refused_where_more_may_be_equal() -> None:
    values, ids = np.array([[5.0, 4.0, 3.0, 3.0]]), np.array([[7, 1, 2, 9]])
    assert spread(values, ids, 3, 10) is None, "a fifth one may be 3, too"
    found = spread(values, ids, 2, 10)
    assert found is not None and found[0, [7, 1, 2, 9]].tolist() == [5, 4, 3, 3] and np.isneginf(found).sum() == 6
    assert spread(values, np.array([[3, 1, 2, 0]]), 3, 4) is not None, "these are all there are"
    assert spread(np.array([[np.nan, 4.0, 3.0]]), np.array([[0, 1, 2]]), 1, 10) is None
    near = np.float32(3) * (1 + np.finfo(np.float32).eps)
    assert spread(np.array([[near, 3.0]], np.float32), np.array([[0, 1]]), 1, 10) is None, "equal once divided"


# -- the likeliest token -----------------------------------------------------------------------------------------------


def rows_with_everything() -> Array:
    """Rows [N,V] with equal largest logits, infinities, NaN anywhere, and zeros of both signs."""
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal(50), np.zeros(50), np.full(50, -np.inf), np.full(50, np.nan), -np.arange(50.0)]
    for bad in (np.nan, np.inf, -np.inf):
        for place in (0, 20, 49):
            rows.append(rng.standard_normal(50))
            rows[-1][place] = bad
    rows.append(np.repeat(rng.standard_normal(10), 5))
    rows.append(np.where(np.arange(50) % 7 == 3, 2.0, -1.0))
    rows.append(np.array([-0.0, 0.0] * 25))
    return np.array(rows)


def lowered(x: Array, dtype: DType) -> Any:
    """The op on ONNX Runtime."""
    graph = Graph("next")
    graph.output(NEXT, next_token(graph.input(LOGITS, tensor(dtype, Dim.symbol("R"), x.shape[-1]))))
    made = lower(graph, Weights.of({}), pipeline=Pipeline("none", []))
    session = onnxruntime.InferenceSession(
        onnx_ir.to_proto(made).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return graph, made, session.run(None, {LOGITS: x})[0]


@pytest.mark.parametrize("dtype", [f32, f16], ids=str)
def test_the_likeliest_token_is_that_of_numpy(dtype: DType) -> None:
    x = rows_with_everything().astype(dtype.numpy)
    graph, _, found = lowered(x, dtype)
    best = x.argmax(-1)  # NaN counts as the largest there, too.
    wanted = np.where(np.isfinite(x[np.arange(len(x)), best]), best, NONE)
    assert found.dtype == np.int64 and np.array_equal(found, wanted)
    assert np.array_equal(interpret(graph, {LOGITS: x}, {})[NEXT], wanted)
    assert np.array_equal(likeliest(x), wanted)


@pytest.mark.parametrize("dtype", [f32, f16, bf16], ids=str)
def test_cuda_has_kernels_for_choosing(dtype: DType) -> None:
    graph = Graph("next")
    graph.output(NEXT, next_token(graph.input(LOGITS, tensor(dtype, Dim.symbol("R"), 300))))
    kernel_table("cuda").check(lower(graph, Weights.of({}), pipeline=Pipeline("none", [])))


def test_a_graph_without_state_or_logits_chooses_nothing() -> None:
    def made(output: str, width: Any, dtype: DType, *, state: bool) -> int:
        graph = Graph("g")
        x = graph.input("x", tensor(dtype, Dim.symbol("R"), width))
        if state:
            h = graph.input("h", tensor(f32, 2))
            graph.slots += (Slot("h", "h1", Growth.replace, h.type),)
            graph.output("h1", h)
        graph.output(output, x)
        return choose_tokens(graph)

    assert made(LOGITS, 9, f32, state=True) == 1
    assert made(LOGITS, 9, f32, state=False) == 0, "it is run once"
    assert made("hidden", 9, f32, state=True) == 0
    assert made(LOGITS, Dim.symbol("V"), f32, state=True) == 0
    assert made(LOGITS, 1 << 24, f32, state=True) == 0, "ids are told apart in f32"
    assert made(LOGITS, 9, i64, state=True) == 0
    with pytest.raises(OpError, match="x is i64"):
        next_token(Graph("g").input("x", tensor(i64, 3, 4)))
