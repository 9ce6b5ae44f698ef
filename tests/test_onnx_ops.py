"""Every op case, lowered to ONNX and run in ONNX Runtime, against the reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import pytest
from monograph.backends.onnx import lower
from monograph.ir import interpret
from monograph.ir.weights import Weights
from onnx.reference import ReferenceEvaluator
from op_cases import CASES, Case

# ONNX Runtime answers without a shape to read it from.
ort.set_default_logger_severity(3)


def run(model: onnx_ir.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of a small model in ONNX Runtime, after ONNX's own full check."""
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    used = {i.name for i in session.get_inputs()}
    return dict(zip(names, session.run(names, {k: v for k, v in inputs.items() if k in used}), strict=True))


def run_reference(model: onnx_ir.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of the same model in the evaluator that ONNX itself ships, a second reading of the standard."""
    evaluator = ReferenceEvaluator(onnx_ir.to_proto(model))
    return {k: np.asarray(v) for k, v in zip(evaluator.output_names, evaluator.run(None, inputs), strict=True)}


def assert_same(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray], tolerance: float = 1e-5) -> None:
    """Floats within the tolerance, scaled by the largest element; everything else exactly."""
    assert list(got) == list(wanted)
    for name, w in wanted.items():
        g = got[name]
        assert g.shape == w.shape and g.dtype == w.dtype, f"{name}: {g.dtype}{g.shape}, expected {w.dtype}{w.shape}"
        if w.dtype.kind == "f":
            finite = w[np.isfinite(w)]
            scale = max(1.0, float(np.abs(finite).max(initial=0.0)))
            np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * scale, err_msg=name)
        else:
            np.testing.assert_array_equal(g, w, err_msg=name)


def evaluator_knows(case: Case) -> bool:
    """Of recurrent ops, the evaluator reads no sequence_lens and has no activation but tanh."""
    recurrent = case.op in ("rnn", "lstm", "gru")
    return not recurrent or (case.inputs["lengths"] is None and case.attributes.get("activation") != "relu")


@pytest.mark.parametrize("symbolic", [False, True], ids=["numbers", "symbols"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case, symbolic: bool) -> None:
    graph = case.graph(symbolic=symbolic)
    inputs = case.arrays()
    model = lower(graph, Weights.of({}))
    wanted = interpret(graph, inputs)
    assert_same(run(model, inputs), wanted)
    if symbolic and evaluator_knows(case):
        assert_same(run_reference(model, inputs), wanted)
