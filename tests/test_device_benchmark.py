"""benchmarks/cuda.py on machines without a GPU: one typed error; what it measures runs over a device made of memory."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import monograph as mg
import numpy as np
import pytest
from device_memory import Device, device
from monograph.backends.onnxruntime.memory_cuda import CudaMemory
from monograph.backends.onnxruntime.options import check_device
from monograph.frontends.dsl import load_family
from monograph.ir.errors import RuntimeInputError
from monograph.ir.weights import Weights
from monograph.passes.differential import random_params

__all__ = ["device"]
FOLDER = Path(__file__).parent.parent / "benchmarks"


def has_cuda() -> bool:
    try:
        check_device("cuda")
    except RuntimeInputError:
        return False
    return True


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("cuda_benchmark", FOLDER / "cuda.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_without_a_device_there_is_one_error_and_no_figure() -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "cuda.py", "--no-publish", "--minutes", "0"], capture_output=True, text=True
    )
    if has_cuda():
        assert done.returncode == 0 and "the time is up" in done.stdout
        return
    assert done.returncode == 1
    assert done.stderr.startswith("RuntimeInputError: no session opens on cuda: ")
    assert "Traceback" not in done.stderr and "tokens/s" not in done.stdout


def test_what_it_measures_runs_to_a_row(
    cuda: ModuleType, device: Callable[[], Device], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_family("llama")(vocab=90, dim=64, heads=4, kv_heads=2, head_dim=16, ffn=48, layers=2, max_positions=64)
    model = dataclasses.replace(model, weights=Weights.of(random_params(model.graph())))
    subject = cuda.Subject("tiny", model, [[1, 2, 3], [4, 5]], 6)
    for name, value in {"PREFILL": 20, "WARM": 2, "STEPS": 3, "ROUNDS": 2}.items():
        monkeypatch.setattr(cuda, name, value)
    peak = cuda.bandwidth(CudaMemory("cpu", "CPUExecutionProvider"), size=1 << 16)
    expected = cuda.told(subject, tmp_path / "told")
    given = (subject, "f32", tmp_path / "out", expected, peak)
    rows = list(cuda.measured(*given, cuda.Clock(100), "cpu", ((1, 8), (3, 20))))
    assert [(r["rows"], r["context"]) for r in rows] == [(1, 8), (3, 20)]
    for row in rows:
        assert row["note"] == "captured ids as eager"
        assert row["ids as on the CPU"] == "12 of 12" and row["logits off by"] < 1e-4
        assert row["captured step (ms)"] > 0 and row["tokens/s"] > 0 and row["of bandwidth"] > 0
    assert len({tuple(r) for r in rows}) == 1, "rows of one table"
    late = list(cuda.measured(*given, cuda.Clock(0), "cpu"))
    assert [r["note"] for r in late] == ["not measured: the time is up"] and {*late[0]} == {*rows[0]}
    refused = list(cuda.measured(subject, "bf16", tmp_path / "out", expected, peak, cuda.Clock(100), "cpu"))
    assert len(refused) == 1 and refused[0]["tokens/s"] is None and refused[0]["note"]


def test_a_billion_weights_have_the_shape_of_llama(cuda: ModuleType) -> None:
    shapes = cuda.shapes_of(load_family("llama")(**cuda.BILLION)).values()
    assert 1.2e9 < sum(int(np.prod(s)) for s in shapes) < 1.3e9


def test_random_models_are_built_in_every_precision(
    cuda: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each precision once, of a billion weights made small; codes stay codes."""
    small = {"dim": 128, "layers": 2, "heads": 2, "kv_heads": 1, "ffn": 256, "vocab": 500, "max_positions": 64}
    monkeypatch.setattr(cuda, "BILLION", {**cuda.BILLION, **small})
    plain, codes = cuda.billion(), cuda.billion_codes()
    assert (*plain.precisions, *codes.precisions) == ("f16", "bf16", "f32", "int4")
    assert cuda.coded(codes.model) and not cuda.coded(plain.model)
    assert {k: v.type.shape for k, v in plain.model.weights.items()} == {
        k: v.type.shape for k, v in codes.model.weights.items()
    }
    engine = mg.build(codes.model, tmp_path / "int4", target="cuda", dtype="f16")
    assert engine.report is not None and not engine.report.through_float
    assert engine.report.nodes["model.onnx"]["MatMulNBits"] == 2 * 5 + 1, "packed projections, o, gate, up, down; head"
