"""What SIGTERM and full disks leave behind: nothing, and an error that names the place."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from monograph.ir.errors import WriteError
from monograph.ir.files import beside

WAITS = """
import sys, time, pathlib
from monograph.console import terminable
from monograph.ir.files import beside

with terminable(), beside(pathlib.Path(sys.argv[1]), "lines"):
    print("begun", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to handle")
@pytest.mark.parametrize("times", [1, 2])
def test_a_command_that_is_terminated_removes_what_it_began(times: int, tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", WAITS, str(tmp_path / "built")], stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        assert len(list(tmp_path.iterdir())) == 1
        for _ in range(times):
            child.send_signal(signal.SIGTERM)
        assert child.wait(30) == -signal.SIGTERM
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="no locks that tell who is dead")
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", WAITS, str(tmp_path / "built")], stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
        child.wait(30)
    time.sleep(0.1)
    assert len(list(tmp_path.iterdir())) == 1
    with beside(tmp_path / "built", "lines") as work:
        assert list(tmp_path.iterdir()) == [work]
    assert not list(tmp_path.iterdir())


def test_scratch_that_cannot_be_written_names_its_place(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="cannot be written: No space"), beside(tmp_path / "built", "lines"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_short_write_of_numpy_says_why() -> None:
    with pytest.raises(OSError) as found, Path("/dev/full").open("wb", buffering=0) as file:
        np.ones(100_000).tofile(file)
    assert str(WriteError(found.value, place="there")).startswith("there: cannot be written: ")
    assert "None" not in str(WriteError(found.value, place="there"))
