"""ONNX's own node tests through our Backend: import, the reference, and what is written again in ONNX Runtime."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from monograph.backends.onnx.backend import EVALUATOR, REFERENCE, WRITTEN, MonographBackend
from monograph.frontends.onnx.errors import OnnxFileError
from monograph.frontends.onnx.runtime import failures, open_session
from monograph.frontends.onnx.tables import HANDLERS
from monograph.ir.errors import LoweringError, MonographError, RuntimeInputError
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

pytestmark = pytest.mark.slow

DRAWN = "bernoulli|training_dropout"
"""Results that are drawn."""
RUNTIME = (
    r"qk_matmul_bias_\dd_mask_causal$|4d_diff_heads_mask4d_padded_kv$|convinteger_with_padding|maxunpool_export_with_output"
    r"|resize_downsample_scales_(linear|cubic)_align|reduce_max_empty_set_bool|test_dft(_axis|_rfft)?(_opset19)?$"
    r"|range_\w+_delta_expanded"
)
"""ONNX Runtime, or ONNX's own evaluator where that does not take the file, differs on the node as it stands."""
OURS: dict[str, tuple[type[MonographError], str]] = {
    r"test_not_\dd$": (OnnxFileError, "is of opset 1; 7 to"),
    "test_scan_sum$": (LoweringError, "Scan of opset 8 has a batch axis"),
}
"""What we refuse, with what we say of it."""

Run = Callable[[list[np.ndarray[Any, Any]]], Any]


@functools.cache
def cases() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_model_tests(kind="node")


def named(pattern: str) -> list[Any]:
    return [c for c in cases() if re.search(pattern, c.name)]


def has_others(model: onnx.ModelProto) -> bool:
    """Whether inputs or outputs are no tensors: sequences and optionals."""
    return any(v.type.WhichOneof("value") != "tensor_type" for v in (*model.graph.input, *model.graph.output))


def left_in() -> list[Any]:
    out = re.compile("|".join((DRAWN, RUNTIME, *OURS)))
    return [c for c in cases() if not out.search(c.name) and not has_others(c.model)]


def uses_handlers(model: onnx.ModelProto) -> bool:
    return any((n.domain.replace("ai.onnx", ""), n.op_type) in HANDLERS for n in model.graph.node)


def arrays(values: Any) -> Iterator[np.ndarray[Any, Any]]:
    for v in values:
        yield numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else np.asarray(v)


def tolerance(case: Any, outputs: list[np.ndarray[Any, Any]]) -> float:
    """What the test allows; 16-bit floats are computed in f32 here and in 16 bits there."""
    narrow = any(x.dtype.itemsize == 2 for x in outputs) or re.search("bf16|fp16|float16", case.name)
    return max(case.rtol, 2e-2 if narrow else 1e-3)


def difference(case: Any, run: Run) -> str:
    """What is wrong with the results of a case; empty for what is right."""
    for given, expected in case.data_sets:
        wanted = list(arrays(expected))
        for have, want in zip(run(list(arrays(given))), wanted, strict=True):
            if want.dtype.kind in "OUS":
                if have.astype(str).tolist() != want.astype(str).tolist():
                    return f"{have} is not {want}"
                continue
            if (have.dtype, have.shape) != (want.dtype, want.shape):
                return f"{have.dtype}{have.shape} is not {want.dtype}{want.shape}"
            allowed = tolerance(case, wanted)
            a, b = have.astype(np.float64), want.astype(np.float64)
            if not np.allclose(a, b, rtol=allowed, atol=max(case.atol, allowed / 10), equal_nan=True):
                return f"off by {np.nanmax(np.abs(a - b))}"
    return ""


def prepared(case: Any, mode: str) -> Any:
    opset = max([23, *(o.version for o in case.model.opset_import if o.domain in ("", "ai.onnx"))])
    return MonographBackend.prepare(case.model, mode=mode, opset=opset)


def original(case: Any) -> Run:
    """The file as it stands, in ONNX Runtime, or in ONNX's evaluator if that does not take it."""
    try:
        session = open_session(case.model.SerializeToString())
        names = [i.name for i in session.get_inputs()]
    except RuntimeInputError:
        session = ReferenceEvaluator(case.model)
        names = session.input_names
    return lambda given: session.run(None, dict(zip(names, given, strict=True)))


def refused(case: Any) -> bool:
    """Whether ONNX Runtime does not open the file as it stands."""
    try:
        open_session(case.model.SerializeToString())
    except RuntimeInputError:
        return True
    return False


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", [REFERENCE, WRITTEN])
def test_node_tests(mode: str) -> None:
    """All that is left in passes, and no fewer than these are left in; the mapped operators are among them."""
    wrong: dict[str, str] = {}
    for case in left_in():
        made = prepared(case, mode)
        assert made.engine != EVALUATOR or refused(case) or made.why.startswith("NumPy has no "), case.name
        if what := difference(case, made.run):
            wrong[case.name] = what
    assert wrong == {}
    assert len(left_in()) >= 1800
    assert sum(uses_handlers(c.model) for c in left_in()) >= 1300


@pytest.mark.filterwarnings("ignore")
def test_left_out_is_what_the_runtime_does_not_do() -> None:
    """Each of them fails, or gives something else, without anything of ours."""
    right: list[str] = []
    for case in named(RUNTIME):
        try:
            right += [case.name] * (not difference(case, original(case)))
        except failures():
            continue
    assert right == []
    assert 10 <= len(named(RUNTIME)) <= 20


def test_left_out_is_drawn() -> None:
    for case in named(DRAWN):
        assert {n.op_type for n in case.model.graph.node} & {"Bernoulli", "RandomUniformLike", "Dropout"}, case.name


def test_left_out_is_refused_with_the_place() -> None:
    """What is no tensor, and what is ours."""
    others = [c for c in cases() if has_others(c.model)]
    for case in others:
        with pytest.raises(OnnxFileError, match=r"model\.onnx: (in|out)put \w+: .*tensor"):
            prepared(case, REFERENCE)
    for pattern, (kind, text) in OURS.items():
        for case in named(pattern):
            with pytest.raises(kind, match=text):
                prepared(case, WRITTEN)
    assert len(others) + sum(len(named(p)) for p in OURS) <= 40
