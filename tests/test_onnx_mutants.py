"""Valid ONNX files with one thing damaged: read, or refused by one typed error that names the file."""

from __future__ import annotations

import sys
from pathlib import Path

import monograph as mg
import pytest
from monograph.frontends.onnx import load_onnx
from monograph.ir.errors import MonographError, RuntimeInputError

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from mutated_files_cases import MADE, write
from mutated_files_kinds import mutant


@pytest.mark.parametrize("name", MADE)
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    """Some of the mutants of `benchmarks/mutated_files.py`, of each valid file."""
    valid = MADE[name]()
    for seed in range(24):
        _, _, data, _ = mutant({name: valid}, seed)
        path = write(data, tmp_path / str(seed) / "in")
        try:
            assert len(load_onnx(path).graph().outputs) > 0
        except MonographError as e:
            assert str(path) in str(e)
            assert len(str(e)) < 4000


def test_what_crashes_the_runtime_is_refused_before_it_runs(tmp_path: Path) -> None:
    model = MADE["microsoft"]()
    model.graph.node[0].input[:] = ["x", "w", "", "lengths"]
    path = write(model, tmp_path / "in")
    assert len(mg.load(path).graph().outputs) == 1
    with pytest.raises(
        RuntimeInputError, match=r"node a .Attention.: ONNX Runtime crashes on it: operand 2 .bias. is left"
    ):
        mg.optimize(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
