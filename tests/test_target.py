"""Kernel tables: read from files and from the runtime, and what they say about a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime as ort
import pytest
from monograph.backends import target as module
from monograph.backends.onnx import lower
from monograph.backends.onnxruntime.variants import variants_of
from monograph.backends.target import Kernel, KernelTable, Target, kernel_table, read_table
from monograph.frontends.models.llama import llama
from monograph.ir import Graph, MonographError, ops
from monograph.ir.builder import building, enter_scope
from monograph.ir.errors import LoweringError
from monograph.ir.types import bf16, f16, f32, tensor
from monograph.ir.weights import Weights
from monograph.passes.manager import Pipeline

NOTHING = Pipeline("lowered", [])
FOLDER = Path(module.__file__).parent


def product(dtype: str = "f32") -> onnx_ir.Model:
    """x @ w in one layer of a model."""
    graph = Graph("product")
    kind = {"f32": f32, "f16": f16, "bf16": bf16}[dtype]
    x, w = graph.input("x", tensor(kind, "B", 4)), graph.param("mlp.weight", tensor(kind, 4, 3))
    with building(graph):
        enter_scope(graph, "model.layers.7")
        graph.output("y", ops.matmul(x, w))
    return lower(graph, Weights.of({"mlp.weight": np.ones((4, 3), kind.numpy)}))


@pytest.mark.parametrize("line", ["ai.onnx MatMul 1-8 T=float", "com.microsoft GroupQueryAttention 1- T=float M=int32",
                                  "ai.onnx Shape *"])  # fmt: skip
def test_a_line_is_a_kernel(line: str) -> None:
    kernel = Kernel.parse(line)
    assert Kernel.parse(kernel.line) == kernel


def test_versions_follow_the_runtimes_rule() -> None:
    """An open kernel implements exactly the version it starts at; a closed one every version inside."""
    assert [Kernel.parse("ai.onnx X 13- T=float").takes(v) for v in (9, 13, 17)] == [False, True, False]
    assert [Kernel.parse("ai.onnx X 9-12 T=float").takes(v) for v in (8, 9, 11, 13)] == [False, True, True, False]
    assert Kernel.parse("ai.onnx X *").takes(5)


def test_the_table_of_the_installed_runtime() -> None:
    table = kernel_table("cpu")
    assert len(table) > 1000
    found = table.kernels["com.microsoft", "GroupQueryAttention"]
    assert {"float"} in [k.types["T"] for k in found]
    assert ("ai.onnx", "NoSuchOp") not in table.kernels


def test_the_shipped_table_agrees_with_a_runtime_that_can_be_asked() -> None:
    shipped, used = read_table(FOLDER / "kernels_cpu.txt", "cpu"), kernel_table("cpu")
    wanted = [("", "MatMul"), ("", "Attention"), ("com.microsoft", "QuickGelu"), ("", "RMSNormalization")]
    for key in wanted:
        assert {k.line for k in shipped.kernels[key]} <= {k.line for k in used.kernels[key]}


def test_a_whole_model_has_kernels_on_the_cpu() -> None:
    model = llama(vocab=50, dim=64, ffn=48, layers=1, heads=4, kv_heads=2, tied=True)
    weights = Weights.initialize(model.graph())
    for graph in variants_of(model.graph(), Target.of("cpu"), 64).graphs.values():
        lowered = lower(graph, weights, pipeline=NOTHING)
        kernel_table("cpu").check(lowered)
        with pytest.raises(LoweringError, match="have no kernel on cpu"):
            KernelTable("cpu", [], "an empty table").check(lowered)


def test_the_cuda_table_refuses_what_the_library_lacks() -> None:
    model = llama(vocab=50, dim=64, ffn=48, layers=2, heads=4, kv_heads=2, tied=True)
    weights = Weights.initialize(model.graph())
    graph = variants_of(model.graph(), Target.of("cpu"), 64).graphs["model.onnx"]
    with pytest.raises(LoweringError) as e:
        kernel_table("cuda").check(lower(graph, weights, pipeline=NOTHING))
    text = str(e.value)
    assert "2 nodes have no kernel on cuda (ONNX Runtime 1.31.1" in text
    assert "com.microsoft.GroupQueryAttention (version 1) for T=float" in text
    assert "model.layers.0" in text and "model.layers.1" in text and "llama.py:" in text
    assert "there is * T=bfloat16,float16" in text
    half = variants_of(model.graph(f16), Target.of("cuda"), 64).graphs["model.onnx"]
    kernel_table("cuda").check(lower(half, weights, pipeline=NOTHING))


def test_an_element_type_without_kernel_is_named() -> None:
    with pytest.raises(LoweringError) as e:
        kernel_table("cpu").check(product("bf16"))
    assert "ai.onnx.MatMul (version 13) for T=bfloat16" in str(e.value) and "model.layers.7" in str(e.value)
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED|Could not find an implementation"):
        ort.InferenceSession(onnx_ir.to_proto(product("bf16")).SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_what_the_table_allows_runs(dtype: str) -> None:
    model = product(dtype)
    kernel_table("cpu").check(model)
    session = ort.InferenceSession(onnx_ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.arange(8).reshape(2, 4).astype({"f32": np.float32, "f16": np.float16}[dtype])
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], [[6, 6, 6], [22, 22, 22]])


def test_targets() -> None:
    assert str(Target.of("cpu")) == "cpu f32" and Target.of("cuda").dtype == f16
    assert Target.of("cpu").execution_provider == "CPUExecutionProvider"
    assert Target.of("cpu").runtime == ort.__version__
    own = Target("cpu", bf16)
    assert Target.of(own) is own
    with pytest.raises(MonographError, match="no target is called 'cpux', did you mean 'cpu'"):
        Target.of("cpux")
