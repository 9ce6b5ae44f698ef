"""What stands in the way of a captured step, and the traps of a kernel table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
from cuda_models import with_weights
from monograph.backends.onnxruntime import build
from monograph.backends.onnxruntime.capturable import by_op, capture_refusals
from monograph.backends.onnxruntime.widened import widen
from monograph.backends.target import Target, kernel_table
from monograph.backends.traps import Facts, Trap
from monograph.ir.errors import LoweringError, MonographError
from monograph.ir.types import DType, f16, f32

FLOAT, INT = onnx_ir.DataType.FLOAT, onnx_ir.DataType.INT64
CUDA = Target("cuda", f32)


class Small:
    """An ONNX model in the making."""

    def __init__(self) -> None:
        self.inputs: list[onnx_ir.Value] = []
        self.nodes: list[onnx_ir.Node] = []
        self.fixed: list[onnx_ir.Value] = []

    def input(self, name: str, *shape: int | str, dtype: onnx_ir.DataType = FLOAT) -> onnx_ir.Value:
        v = onnx_ir.Value(name=name, shape=onnx_ir.Shape(shape), type=onnx_ir.TensorType(dtype))
        self.inputs.append(v)
        return v

    def constant(self, name: str, *numbers: int) -> onnx_ir.Value:
        array = np.array(numbers, np.int64)
        v = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name), type=onnx_ir.TensorType(INT))
        v.shape = onnx_ir.Shape(array.shape)
        self.fixed.append(v)
        return v

    def node(self, op: str, *operands: onnx_ir.Value, dtype: onnx_ir.DataType = FLOAT, **given: Any) -> onnx_ir.Value:
        domain = given.pop("domain", "")
        node = onnx_ir.node(op, list(operands), given, domain=domain, name=f"{op}.{len(self.nodes)}")
        node.metadata_props["scope"] = "layers.3"
        (v,) = node.outputs
        v.name, v.dtype = f"v{len(self.nodes)}", dtype
        self.nodes.append(node)
        return v

    def model(self, *outputs: onnx_ir.Value) -> onnx_ir.Model:
        opsets = {"": 23, "com.microsoft": 1}
        graph = onnx_ir.Graph(
            self.inputs, list(outputs), nodes=self.nodes, initializers=self.fixed, opset_imports=opsets, name="small"
        )
        return onnx_ir.Model(graph, ir_version=11)


def test_a_decode_step_over_shared_buffers_can_be_captured(tmp_path: Path) -> None:
    for name in ("llama", "gpt2", "gemma3_text"):
        build(with_weights(name), None, tmp_path / name, Target("cuda", f16))
        model = onnx_ir.load(str(tmp_path / name / "model.onnx"))
        assert capture_refusals(model, Target.of("cuda")) == [], name


@pytest.mark.parametrize(
    ("name", "dtype", "said"),
    [
        ("llama", "f32", "past_key_values.0.key"),
        ("mixtral", "f16", "ai.onnx.NonZero"),
        ("lstm_lm", "f16", "lengths of sequences are read on the host"),
        ("bloom", "f16", "present.0.key"),
    ],
)
def test_what_cannot_be_captured_is_named(name: str, dtype: str, said: str, tmp_path: Path) -> None:
    build(with_weights(name), None, tmp_path / "out", Target("cuda", DType(dtype)))
    found = capture_refusals(onnx_ir.load(str(tmp_path / "out" / "model.onnx")), Target.of("cuda"))
    assert any(said in line for line in found), found
    assert all(" at " in line for line in found) and sum(by_op(found).values()) == len(found)


def test_gather_nd_and_control_flow_are_named_with_their_threads() -> None:
    m = Small()
    x, i = m.input("x", "B", 4), m.input("i", "B", 1, dtype=INT)
    found = capture_refusals(m.model(m.node("GatherND", x, i)), CUDA)
    assert found == ["ai.onnx.GatherND at layers.3: replays of a captured step are wrong (onnxruntime#33875)"]


def test_copies_between_host_and_device_are_found() -> None:
    m = Small()
    x, n = m.input("x", "B", 4), m.input("n", 1, dtype=INT)
    sized = m.node("Shape", x, dtype=INT)
    shape = m.node("Concat", sized, m.constant("one", 1), dtype=INT, axis=0)
    fine = m.node("Reshape", x, shape)
    back = m.node("Cast", sized, to=int(FLOAT))
    mixed = m.node("Mul", m.node("Relu", x), back)
    there = m.node(
        "Expand", fine, m.node("Abs", m.node("Add", n, m.node("NonZero", x, dtype=INT), dtype=INT), dtype=INT)
    )
    lines = capture_refusals(m.model(mixed, there), CUDA)
    assert [line.split(" at ")[0] for line in lines] == ["ai.onnx.Mul", "ai.onnx.NonZero", "ai.onnx.Expand"]
    assert "B is computed on the host and read on the device" in lines[0]
    assert "shape is computed on the device and read on the host" in lines[2]


def test_ops_without_a_kernel_run_on_the_host() -> None:
    m = Small()
    x = m.input("x", "B", 4)
    (line,) = capture_refusals(m.model(m.node("Det", x)), CUDA)
    assert line == "ai.onnx.Det at layers.3: cuda has no kernel for it, so it runs on the host"


def test_a_total_length_from_the_device_is_refused_when_building() -> None:
    m = Small()
    half = onnx_ir.DataType.FLOAT16
    q, past = m.input("q", "B", 1, 64, dtype=half), m.input("past", "B", 2, "P", 16, dtype=half)
    last, total = m.input("last", "B", dtype=onnx_ir.DataType.INT32), m.input("total", dtype=onnx_ir.DataType.INT32)
    given = {"domain": "com.microsoft", "num_heads": 4, "kv_num_heads": 2, "dtype": half}
    right = m.node("GroupQueryAttention", q, q, q, past, past, last, total, **given)
    node = right.producer()
    assert node is not None
    wrong = m.model(right)
    kernel_table("cuda").check(wrong)
    computed = onnx_ir.node("Neg", [total], name="Neg")
    computed.outputs[0].dtype = onnx_ir.DataType.INT32
    wrong.graph.insert_before(node, computed)
    node.replace_input_with(6, computed.outputs[0])
    with pytest.raises(LoweringError, match=r"(?s)known to go wrong on cuda.*read as 0.*onnxruntime#33867"):
        kernel_table("cuda").check(wrong)
    assert any("onnxruntime#33867" in line for line in capture_refusals(wrong, CUDA))


def test_traps_look_at_attributes_groups_and_operands() -> None:
    m = Small()
    x = m.input("x", "B", 4)
    node = m.node("A", x, x, num_heads=9, kv_num_heads=3, softcap=0.0, accuracy_level=4).producer()
    assert node is not None

    def catches(when: str) -> bool:
        return Trap("-", "slow", "", "A", when, "what").catches(node, ["q", "k", "bias"])

    assert catches("always") and catches("group=3") and not catches("group=4")
    assert catches("q=given") and not catches("q=computed") and not catches("bias=given")
    assert catches("accuracy_level=4") and not catches("accuracy_level=1")
    assert not catches("softcap=given") and not catches("nothing=given")
    assert not Trap("-", "slow", "", "B", "always", "what").catches(node, [])


def test_table_lines_that_are_no_kernels() -> None:
    facts = kernel_table("cuda").facts
    known = {t.thread for t in facts.traps}
    assert {
        "onnxruntime#33867",
        "onnxruntime#33875",
        "onnxruntime-genai#2446",
        "onnxruntime#33869",
        "onnx#7867",
    } <= known
    assert {"onnxruntime#33866", "onnxruntime#33873", "onnxruntime#29849"} <= {
        t.thread for t in kernel_table("cpu").facts.traps
    }
    assert ("com.microsoft", "GroupQueryAttention") in facts.inplace and "shape" in facts.host["", "Reshape"]
    with pytest.raises(MonographError, match="a trap weighs 'loud', expected one of refuse, capture"):
        Facts.parse(["trap - loud ai.onnx If always no"])


def test_ops_in_f32_only_get_casts() -> None:
    m = Small()
    x = m.input("x", "B", 4, dtype=onnx_ir.DataType.BFLOAT16)
    y = m.node("Log", x, dtype=onnx_ir.DataType.BFLOAT16)
    model = m.model(m.node("Sigmoid", y, dtype=onnx_ir.DataType.BFLOAT16))
    table = kernel_table("cuda")
    with pytest.raises(LoweringError):
        table.check(model)
    assert widen(model, table) == ["Log"]
    table.check(model)
    assert [n.op_type for n in model.graph] == ["Cast", "Log", "Cast", "Sigmoid"]
    assert model.graph.outputs[0].dtype == onnx_ir.DataType.BFLOAT16
