"""SIGKILL at random moments: the small edition of benchmarks/kill_resume.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from monograph.training.log import read_log

pytestmark = pytest.mark.slow


def test_five_kills_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import kill_resume

    folder = kill_resume.prepare(tmp_path / "work", steps=40, every=2)
    found = kill_resume.measure(folder, kills=5, seed=3)
    assert found.wrong == []
    assert len(found.kills) == 5 and all(k.resumed is not None for k in found.kills)
    assert {k.moment for k in found.kills} == set(kill_resume.MOMENTS)
    assert [x["step"] for x in read_log(folder / "killed")] == list(range(1, 41))
    found.lines[-1]["loss"] = math.nextafter(found.lines[-1]["loss"], 99)
    assert len(list(kill_resume.differing(folder / "whole", found))) == 1, "the last bit is compared"
