"""Folders built for CUDA in f16, bf16, int4 and f32, on a device made of memory: ids, and what crosses at each step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import monograph as mg
import numpy as np
import onnx
import pytest
from device_memory import Device, device
from device_models import VOCAB, began, served
from monograph.backends.onnxruntime import Session, build
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.onnxruntime import session as sessions
from monograph.backends.onnxruntime.contract import Contract
from monograph.backends.onnxruntime.memory_cpu import CpuMemory
from monograph.backends.onnxruntime.memory_cuda import CudaMemory
from monograph.backends.onnxruntime.rehosted import rehosted
from monograph.backends.onnxruntime.runtime import Loaded
from monograph.backends.target import Target
from monograph.frontends.dsl import load_family
from monograph.ir.types import DType
from monograph.ir.weights import Weights
from monograph.passes.differential import random_params
from onnx import TensorProto, helper

Array = np.ndarray[Any, Any]
__all__ = ["device"]

PRECISIONS = {"f16": DType.f16, "bf16": DType.bf16, "f32": DType.f32}
FAMILIES = ("llama", "gemma3_text", "lfm2", "gpt2", "whisper", "mamba2")


def steps(path: Path, count: int = 14) -> tuple[Session, list[list[int]]]:
    session = open_session(path, threads=1, capacity=64)
    tokens = began(session).argmax(-1)
    ids = [tokens.tolist()]
    for number in range(count):
        if number == 10 and isinstance(session.memory, Device):
            session.memory.forget()
        tokens = session.step_greedy(tokens)
        ids.append(tokens.tolist())
    return session, ids


def check(path: Path, captured: bool) -> None:
    """Ids as over ordinary memory, a token a row at each step, and no buffer or binding later on."""
    session, ids = steps(path)
    memory = session.memory
    assert isinstance(memory, Device)
    shapes = {s.partition("[")[0] for s in memory.downloads}
    assert shapes == {"int64"} and len(memory.downloads) == 4
    assert bool(session.captured) == captured, str(session.captured)
    if captured:
        assert (memory.made, memory.bound, memory.replays) == (0, 0, 4)
    with pytest.MonkeyPatch.context() as m:
        m.setitem(sessions.MEMORIES, "cpu", CpuMemory)
        assert steps(path)[1] == ids


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_for_cuda(device: Callable[[], Device], tmp_path: Path, name: str, precision: str) -> None:
    model, target = served(name), Target("cuda", PRECISIONS[precision], "1.31.1")
    report = build(model, Weights.of(random_params(model.graph())), tmp_path / "cuda", target)
    contract = Contract.read(tmp_path / "cuda")
    captured = bool(contract.lengths)
    assert captured == (precision != "f32" and name != "mamba2"), "f32 has no GroupQueryAttention on CUDA"
    assert captured == (contract.uncaptured == () and bool(contract.lengths))
    assert ("every step" if captured else "caches grow") in repr(report)
    check(rehosted(tmp_path / "cuda", tmp_path / "cpu"), captured)


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_a_folder_for_cuda_in_int4(device: Callable[[], Device], tmp_path: Path, name: str) -> None:
    model = load_family(name)(
        vocab=VOCAB, dim=128, heads=4, kv_heads=2, head_dim=32, ffn=256, layers=2, max_positions=64
    )
    model = dataclasses.replace(model, weights=Weights.of(random_params(model.graph())))
    engine = mg.build(model, tmp_path / "cuda", target="cuda", quantize="int4")
    assert engine.report is not None
    assert engine.report.nodes["model.onnx"]["MatMulNBits"] > 0
    check(rehosted(tmp_path / "cuda", tmp_path / "cpu"), captured=True)


def test_numbers_that_numpy_has_no_type_for_cross_as_they_are() -> None:
    """A bf16 session has bf16 inputs and outputs."""
    ends = [helper.make_tensor_value_info(n, TensorProto.BFLOAT16, ["N"]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    made: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    loaded = Loaded(made.SerializeToString(), "CPUExecutionProvider")
    x = np.array([1.5, -2.25, np.inf, 3e38], ml_dtypes.bfloat16)
    found = loaded.run({"x": x})["y"]
    assert found.dtype == x.dtype and np.array_equal(found, x)
    memory = CudaMemory("cpu", "CPUExecutionProvider")
    found = memory.download(memory.run(loaded, {"x": memory.upload(x)})["y"])
    assert found.dtype == x.dtype and np.array_equal(found, x)
