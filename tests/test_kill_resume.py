"""SIGKILL at random moments: the small edition of benchmarks/kill_resume.py."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from monograph.runs import follow
from monograph.training.log import read_log
from monograph.training.recipe import Recipe

pytestmark = pytest.mark.slow

SERVER: Any = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["monograph.runs", "torch._dynamo"])


def child(folder: Path, name: str, told: Path) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    sys.stderr = told.open("w", buffering=1)
    follow(Recipe.read("recipe.toml"), Path(name), resume=True, progress=False)


class Forked:
    """As a Popen: a process of its own, forked where PyTorch is imported already, which saves most of the time."""

    def __init__(self, folder: Path, name: str) -> None:
        self.told = folder / "stderr.txt"
        self.told.write_text("")
        self.process = SERVER.Process(target=child, args=(folder, name, self.told))
        self.process.start()
        self.kill = self.process.kill

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode

    @property
    def returncode(self) -> int:
        return self.process.exitcode

    def communicate(self) -> tuple[str, str]:
        self.wait()
        return "", self.told.read_text()


def test_five_kills_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import kill_resume

    folder = kill_resume.prepare(tmp_path / "work", steps=160, every=2)
    found = kill_resume.measure(folder, kills=5, seed=3, start=Forked)
    assert found.wrong == []
    assert len(found.kills) == 5 and all(k.resumed is not None for k in found.kills)
    assert {k.moment for k in found.kills} == set(kill_resume.MOMENTS)
    assert [x["step"] for x in read_log(folder / "killed")] == list(range(1, 161))
    found.lines[-1]["loss"] = math.nextafter(found.lines[-1]["loss"], 99)
    assert len(list(kill_resume.differing(folder / "whole", found))) == 1, "the last bit is compared"
