"""Who does the work: this process, a pool of processes, or a Ray cluster. All run the same tasks on the same folder.

A task is a name, a run folder and numbers; it writes its result under its own name in the run folder and returns a
small JSON value. The order in which tasks end never matters. On a cluster the run folder and the input lie on storage
that every machine sees under the same path, as is usual there.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, Protocol

from ..ir.errors import MonographError
from .errors import DataError, need
from .tasks import run_task

Task = dict[str, Any]
_WAITING = 2
"""Tasks handed out ahead for each worker."""


class Engine(Protocol):
    """Runs tasks, gives (index, result) in any order. Raises the error of the first task that fails."""

    name: str

    def map(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]: ...

    def close(self) -> None:
        """Let go of processes that were started; `map` starts them again."""
        ...


class Local:
    """One process, or a pool of `workers` processes on this machine."""

    name = "local"

    def __init__(self, workers: int = 1) -> None:
        if workers < 1:
            raise DataError(f"{workers} workers were asked for, expected at least 1")
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def map(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        if self.workers == 1 or len(tasks) < 2:
            for i, task in enumerate(tasks):
                yield i, run_task(task)
            return
        if self._pool is None:
            self._pool = worker_pool(self.workers)
        try:
            yield from _pooled(self._pool, tasks, self.workers)
        except BrokenProcessPool:
            raise DataError(
                "a worker process died without a word, most likely for lack of memory",
                hint="fewer workers, or a smaller work.piece_bytes; the run goes on where it stopped",
            ) from None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


class RayData:
    """Ray Data on a cluster (address given), or on a cluster of `workers` started on this machine for the run."""

    name = "ray"

    def __init__(self, workers: int = 2, address: str | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self.ray = need("ray", "ray[data]", "distributed", "the distributed engine")
        self.data = need("ray.data", "ray[data]", "distributed", "the distributed engine")
        self.workers, self.address = workers, address
        self._started = False

    def map(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Any]]:
        if not tasks:
            return
        self._connect()
        context = self.data.DataContext.get_current()
        context.enable_progress_bars = False
        items = [{"index": i, "task": json.dumps(task)} for i, task in enumerate(tasks)]
        rows = self.data.from_items(items, override_num_blocks=len(items)).map(_on_ray, num_cpus=1)
        for row in rows.iter_rows():
            yield int(row["index"]), _outcome(json.loads(row["outcome"]))

    def close(self) -> None:
        if self._started:
            self.ray.shutdown()
            self._started = False

    def _connect(self) -> None:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        if self.ray.is_initialized():
            return
        self._started = True
        try:
            if self.address is not None:
                self.ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
            else:
                self.ray.init(
                    num_cpus=self.workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
                )
        except (ConnectionError, RuntimeError, ValueError) as e:
            raise DataError(f"no Ray cluster answers: {e}", place=self.address or "this machine") from None


def workers_by_default() -> int:
    """As many as this process may use cores."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _pooled(pool: ProcessPoolExecutor, tasks: Sequence[Task], workers: int) -> Iterator[tuple[int, Any]]:
    """At most a few tasks a worker are handed out at a time, so that an error stops the rest soon."""
    running: dict[Future[Any], int] = {}
    rest = iter(enumerate(tasks))
    while True:
        for i, task in rest:
            running[pool.submit(_guarded, task)] = i
            if len(running) >= _WAITING * workers:
                break
        if not running:
            return
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            yield running.pop(future), _outcome(future.result())


def _guarded(task: Task) -> dict[str, Any]:
    """Errors raised on purpose travel as values: they keep their parts, and no engine wraps them."""
    try:
        return {"result": run_task(task)}
    except MonographError as e:
        return {"error": [e.what, e.place, list(e.details), e.hint]}


def _on_ray(row: dict[str, Any]) -> dict[str, Any]:
    _one_thread()
    return {"index": row["index"], "outcome": json.dumps(_guarded(json.loads(row["task"])))}


def _outcome(value: dict[str, Any]) -> Any:
    if "error" in value:
        what, place, details, hint = value["error"]
        raise DataError(what, place=place, details=details, hint=hint)
    return value["result"]


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Processes of one thread each, which end when this process does."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)


def _begin_worker() -> None:
    _one_thread()
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    """End this process when its parent does, however that ends: by SIGKILL it tells nobody.

    sentinel: the end of a pipe whose other end only the parent holds.
    """
    connection.wait([sentinel])
    os._exit(1)


def _one_thread() -> None:
    """A worker uses one core: the others belong to the other workers."""
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
