"""Two runs in one folder: the second is told who is in it and changes nothing; a kill leaves the folder free."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from monograph.ir.errors import ConfigError
from monograph.runs import follow
from monograph.training.corpus import Corpus
from monograph.training.errors import TrainingError
from monograph.training.lock import LOCK, held
from monograph.training.recipe import Recipe
from training_runs import TEXT, assert_same_weights, dropping, numbers, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

STEPS: dict[str, Any] = {"steps": 6, "evaluate_every": 2, "seed": 5}
WAITING = """
    import sys, time
    sys.path.insert(0, {tests!r})
    import torch
    from pathlib import Path
    from monograph.training.corpus import Corpus
    from monograph.training.loop import train
    from training_runs import SETTINGS, TEXT, dropping

    def observe(step):
        if step.step == 5:
            print("waiting", flush=True)
            time.sleep(600)

    torch.set_num_threads(1)
    train(dropping(), Corpus.of(TEXT, vocab=300), folder=Path({folder!r}), observe=observe, **SETTINGS | {steps!r})
"""


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.of(TEXT, vocab=300)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is in the middle of a run in `tmp_path / "run"`."""
    code = WAITING.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "run"), steps=STEPS)
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    yield process
    process.kill()
    process.communicate()


def bytes_of(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def in_use(folder: Path, pid: int) -> str:
    """What is said of a folder that is held."""
    who = f"is in use by another run, process {pid} on {socket.gethostname()}\n"
    return re.escape(f"{folder}: {who}  hint: resume when it has ended, or take another folder")


def test_a_second_run_is_refused_and_goes_on_when_the_first_is_killed(
    corpus: Corpus, other: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    before, message = bytes_of(folder), in_use(folder, other.pid)
    assert folder / LOCK in before
    for resume in (False, True):
        with pytest.raises(ConfigError, match=f"^{message}$"):
            run(dropping(), corpus, folder=folder, resume=resume, **STEPS)
    recipe = {"model": {"family": "gpt2"}, "data": {"paths": ["no such file"]}, "train": {"steps": 6}}
    with pytest.raises(ConfigError, match=f"^{message}$"):  # Before the data is read.
        follow(Recipe.of(recipe, folder=tmp_path), folder, resume=True, progress=False)
    assert bytes_of(folder) == before
    other.kill()
    other.wait()
    assert bytes_of(folder) == before, "nobody cleaned up"
    whole = run(dropping(), corpus, folder=tmp_path / "whole", **STEPS)
    resumed = run(dropping(), corpus, folder=folder, resume=True, **STEPS)
    assert numbers(resumed) == numbers(whole)[4:]
    assert_same_weights(folder, tmp_path / "whole")
    assert not list(tmp_path.rglob(LOCK)), "and the file is gone at the end"


def test_threads_are_told_apart_and_one_may_ask_again(tmp_path: Path) -> None:
    found: list[str] = []

    def ask() -> None:
        try:
            with held(tmp_path):
                found.append("held")
        except ConfigError as e:
            found.append(str(e))

    def elsewhere() -> None:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()

    with held(tmp_path):
        ask()
        elsewhere()
        assert json.loads((tmp_path / LOCK).read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
    assert not (tmp_path / LOCK).exists()
    elsewhere()
    assert found[::2] == ["held", "held"]
    assert re.fullmatch(in_use(tmp_path, os.getpid()), found[1])


def test_a_run_that_wrote_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyError), held(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / LOCK).exists()
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path / "new"):
        (tmp_path / "new" / "kept").write_text("")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["kept"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    notes: list[str] = []
    with held(tmp_path, notes.append):
        pass
    assert notes == [f"{tmp_path} lies on a file system without locks: no second run may write into it"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_told_alike_by_both_ways_in(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    recipe = Recipe.of({"model": {"family": "gpt2"}, "data": {"paths": ["a"]}, "train": {"steps": 6}}, folder=tmp_path)
    for folder, why in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "run", "Not a directory")):
        message = f"^{re.escape(str(folder))}: cannot be written: {why}$"
        with pytest.raises(TrainingError, match=message):
            run(dropping(), corpus, folder=folder, **STEPS)
        with pytest.raises(TrainingError, match=message):
            follow(recipe, folder, progress=False)
