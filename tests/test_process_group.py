"""Several processes begin and end together: the group they make is left after any error; one folder is of one run."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed_jobs import grouped, run
from monograph.training.lock import LOCK, held
from ranks import Failure, Ranks

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    with Ranks(2) as found:
        yield found


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def test_an_error_before_the_first_step_leaves_no_process_group(ranks: Ranks) -> None:
    expected = run()["losses"]
    for found in ranks.run(2, grouped, free_ports(4)):
        heads, reference, teacher, losses = found[::2]
        assert heads.startswith("ConfigError") and "1 key/value heads for 4 query heads" in heads
        assert reference.startswith("ConfigError: the reference of a LoRA needs whole weights")
        assert teacher.startswith("WeightsError")
        assert found[1::2] == [False] * 4
        np.testing.assert_allclose(losses, expected, atol=1e-5, rtol=0)


def test_a_folder_that_another_run_is_in_is_refused_by_all(ranks: Ranks, tmp_path: Path) -> None:
    with held(tmp_path):
        for found in ranks.each(2, run, folder=tmp_path, steps=2):
            assert isinstance(found, Failure) and found.kind == "ConfigError"
            assert f"{tmp_path}: is in use by another run, process {os.getpid()} on " in found.text
    assert list(tmp_path.iterdir()) == []
    ranks.run(2, run, folder=tmp_path, steps=2)
    assert (tmp_path / "model.safetensors").exists() and not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("settings", [{"strategy": "fsdp"}, {"tensor": 2}])
def test_a_memory_budget_needs_whole_layers(ranks: Ranks, settings: dict[str, Any]) -> None:
    for found in ranks.each(2, run, steps=1, memory=100, **settings):
        assert isinstance(found, Failure) and found.kind == "ConfigError"
        assert found.text == "memory goes with one process or with strategy ddp, whose processes hold whole layers"
