"""Processes for tests of distributed training: a few that stay, and do one job after another in groups of any size."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import distributed
from torch import multiprocessing as mp

WAIT = 120


class Ranks:
    """`size` processes with gloo between them; a context manager. Starting one costs seconds, a job does not."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> Self:
        context = mp.get_context("spawn")
        self.folder = tempfile.TemporaryDirectory()
        self.jobs = [context.Queue() for _ in range(self.size)]
        self.results = context.Queue()
        self.processes = [
            context.Process(target=_work, args=(rank, self.jobs[rank], self.results), daemon=True)
            for rank in range(self.size)
        ]
        for p in self.processes:
            p.start()
        self.count = 0
        return self

    def run(self, size: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """What `function` gives on each of `size` processes that are in one process group."""
        found = self.each(size, function, *args, **kwargs)
        failed = [x for x in found if isinstance(x, Failure)]
        assert not failed, "\n".join(map(str, failed))
        return found

    def each(self, size: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """The same, with a Failure in place of a result where it raised."""
        self.put(size, function, args, kwargs)
        found: dict[int, Any] = dict(self.results.get(timeout=WAIT) for _ in range(size))
        return [found[rank] for rank in range(size)]

    def survivor(self, size: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The first result of a job in which all processes but one die."""
        self.put(size, function, args, kwargs)
        return self.results.get(timeout=WAIT)[1]

    def put(self, size: int, function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self.count += 1
        store = str(Path(self.folder.name) / str(self.count))
        for rank in range(size):
            self.jobs[rank].put((size, store, function, args, kwargs))

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        for jobs in self.jobs:
            jobs.put(None)
        for p in self.processes:
            p.join(10)
            p.kill()
        self.folder.cleanup()


class Die(BaseException):
    """Ends the process that raises it as a crash would."""


class Failure:
    """An error on another process: the name of its class, its text, and where it came from."""

    def __init__(self, e: BaseException) -> None:
        self.kind, self.text, self.trace = type(e).__name__, str(e), traceback.format_exc()

    def __str__(self) -> str:
        return self.trace


def _work(rank: int, jobs: Any, results: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    while (job := jobs.get()) is not None:
        size, store, function, args, kwargs = job
        os.environ |= {"RANK_OF_JOB": str(rank), "SIZE_OF_JOB": str(size)}
        try:
            found = alone(store, rank, size, function, args, kwargs)
        except Die:
            os._exit(1)
        except BaseException as e:
            found = Failure(e)
        results.put((rank, found))


def alone(store: str, rank: int, size: int, function: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> Any:
    """One job in a process group of its own; of size 1: without one."""
    if size == 1:
        return function(*args, **kwargs)
    wait = timedelta(seconds=60)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=wait)
    try:
        return function(*args, **kwargs)
    finally:
        # A job may have left the group itself, to make another.
        if not isinstance(sys.exc_info()[1], Die) and distributed.is_initialized():
            distributed.destroy_process_group()
