"""Every graph for CUDA, run on the CPU by the same nodes: f16 for all, the other kinds for one of each sort."""

from __future__ import annotations

from pathlib import Path

import pytest
from cuda_models import SUBJECTS, checked, sized
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.onnxruntime.rehosted import rehosted
from monograph.ir.errors import ConfigError, MonographError
from monograph.ir.types import DType, bf16, f16, f32
from monograph.passes.depth import products_in_a_row, rounding
from monograph.passes.differential import CASES

SOME = ("llama", "gpt2", "bert", "t5", "mixtral", "whisper", "small window")


@pytest.mark.parametrize("name", SUBJECTS)
def test_f16_is_right_on_every_mask(name: str, tmp_path: Path) -> None:
    found = checked(name, "f16", tmp_path, CASES)
    assert found.parity.passed, [r for r in found.parity.rows if not r.passed][:3]


@pytest.mark.parametrize("kind", ["f32", "bf16", "int4"])
@pytest.mark.parametrize("name", SOME)
def test_other_kinds_are_right_too(name: str, kind: str, tmp_path: Path) -> None:
    found = checked(name, kind, tmp_path, CASES)
    assert found.parity.passed, [r for r in found.parity.rows if not r.passed][:3]


def test_a_folder_for_cuda_opens_here_only_when_it_is_told_to(tmp_path: Path) -> None:
    folder = checked("small narrow", "bf16", tmp_path, CASES[:1]).folder
    with pytest.raises(MonographError):
        open_session(folder).graph("model.onnx")
    here = tmp_path / "small narrow-bf16-here"
    session = open_session(here)
    assert session.contract.provider == "cpu" and session.contract.dtype == "bf16"
    assert {s.type.dtype for s in session.contract.slots} == {f32}
    with pytest.raises(ConfigError, match="was built for the CPU already"):
        rehosted(here, tmp_path / "again")


def test_how_far_off_a_type_may_be() -> None:
    graph = sized("llama").graph()
    # q, scores and values, the output, gate, down, in each of two layers, and the head.
    assert products_in_a_row(graph) == 2 * (1 + 2 + 1 + 2) + 1
    assert rounding(graph, f16) == 1.5 * 13 / 2048 and rounding(graph, bf16) == 8 * rounding(graph, f16)
    assert rounding(graph, DType.f32) == 0
