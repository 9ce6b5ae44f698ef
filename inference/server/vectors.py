"""Embeddings for many requests: one thread that runs the texts of all who wait together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from ..embed import embed_rows
from ..engine import Engine
from ..errors import ClosedError, QueueFullError
from ..sampling import Array


@dataclass(frozen=True)
class Part:
    """What one request asks for. before: first tokens of each row that are not pooled."""

    rows: list[list[int]]
    before: int
    answer: Future[Array]


class Vectors:
    """A queue of rows of ids over one encoder. waiting: requests that are not answered yet.

    batch: rows run together. A request's rows stay in their order; what runs beside them does not change a vector.
    """

    def __init__(self, engine: Engine, *, waiting: int = 256, batch: int = 32) -> None:
        self.engine, self.most, self.batch = engine, waiting, batch
        self.waiting = 0
        self._changed = threading.Condition()
        self._queue = deque[Part]()
        self._stop = False
        self._thread = threading.Thread(target=self._serve, name="monograph-vectors", daemon=True)
        self._thread.start()

    def submit(self, rows: Sequence[Sequence[int]], before: int = 0) -> Future[Array]:
        """The vectors [len(rows),C] of rows of ids, soon. Raises QueueFullError and ClosedError."""
        with self._changed:
            if self._stop:
                raise ClosedError("the server is closed")
            if self.waiting >= self.most:
                raise QueueFullError(f"{self.waiting} requests wait already")
            answer = Future[Array]()
            self._queue.append(Part([list(r) for r in rows], before, answer))
            self.waiting += 1
            self._changed.notify_all()
        return answer

    def close(self) -> None:
        """Stop, and fail what waits. Doing it again changes nothing."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stop)
                if self._stop:
                    break
                taken = self._take()
            self._answer(taken)
        for part in self._queue:
            if part.answer.set_running_or_notify_cancel():
                part.answer.set_exception(ClosedError("the server was closed before the request was answered"))

    def _take(self) -> list[Part]:
        """The oldest requests that can run together, as many as fill a batch; cancelled ones are dropped."""
        taken: list[Part] = []
        while self._queue and sum(len(part.rows) for part in taken) < self.batch:
            if taken and self._queue[0].before != taken[0].before:
                break
            part = self._queue.popleft()
            if part.answer.set_running_or_notify_cancel():
                taken.append(part)
            else:
                self.waiting -= 1
        return taken

    def _answer(self, taken: list[Part]) -> None:
        if not taken:
            return
        rows = [row for part in taken for row in part.rows]
        engine, fill = self.engine, self.engine.tokenizer.pad_id if self.engine.tokenizer is not None else None
        at = 0
        try:
            found = embed_rows(
                engine.session, rows, engine.pooling, batch=self.batch, before=taken[0].before, fill=fill or 0
            )
        except Exception as e:  # whatever a runtime raises is the answer to those who asked, not the end of the thread
            for part in taken:
                part.answer.set_exception(e)
        else:
            for part in taken:
                part.answer.set_result(found[at : at + len(part.rows)])
                at += len(part.rows)
        with self._changed:
            self.waiting -= len(taken)
