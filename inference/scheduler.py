"""Many requests over one session: rows join and leave between steps, prompts are read in chunks beside them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from ..backends.onnxruntime import Session
from ..backends.onnxruntime.rows import Rows, rows_of
from ..frontends.tokenizer import Tokenizer
from ..ir.errors import MonographError, RuntimeInputError
from .errors import ClosedError, DeadlineError, QueueFullError
from .generate import Settings
from .logprobs import Logprob, logprob
from .request import Asked, Piece, Request, ids_of
from .sampling import Array, Sampler
from .text import RowText

__all__ = ["Gauges", "Piece", "Request", "Scheduler"]

QUEUE, ROWS, CHUNK = 256, 8, 256
PREFIX_BYTES = 256 << 20


@dataclass(frozen=True)
class Gauges:
    """How busy a scheduler is. cache_used: share of the places for tokens in rows that are taken, 0 to 1.

    prefix_hits, prefix_tokens: prompts that began with a known prefix, and the tokens that were not read again.
    tokens_in, tokens_out: prompt tokens and chosen tokens so far. ended: requests that have ended, by reason or error.
    """

    queued: int
    running: int
    rows: int
    cache_used: float
    prefix_hits: int
    prefix_misses: int
    prefix_tokens: int
    prefix_bytes: int
    tokens_in: int
    tokens_out: int
    ended: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass
class _Running:
    """A request that has a row. read: how many tokens of its prompt the row has."""

    request: Request
    row: int
    text: RowText
    sampler: Sampler
    ends: frozenset[int]
    seen: list[int]
    read: int = 0
    chosen: int = 0


class Scheduler:
    """One thread that owns a session and serves requests of any thread; a context manager.

    rows: most requests at once. queue: most that wait. chunk: most tokens of a prompt that are read between two steps
    of the others. prefix_bytes: memory for the states of prompts that others may begin with (0: none).
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer | None,
        *,
        rows: int = ROWS,
        queue: int = QUEUE,
        prefix_bytes: int = PREFIX_BYTES,
        chunk: int = CHUNK,
    ) -> None:
        for name, value, least in (
            ("rows", rows, 1),
            ("queue", queue, 1),
            ("chunk", chunk, 1),
            ("prefix_bytes", prefix_bytes, 0),
        ):
            if value < least:
                raise RuntimeInputError(f"{name} is {value}, expected at least {least}")
        self.session, self.tokenizer, self.chunk, self.limit = session, tokenizer, chunk, queue
        self.rows: Rows = rows_of(session, rows)
        self._changed = threading.Condition()
        self._queue, self._running = deque[Request](), list[_Running]()
        self._next, self._tokens_in, self._tokens_out = 0, 0, 0
        self._ended = dict[str, int]()
        self._closing = self._stop = False
        self._thread = threading.Thread(target=self._serve, name="monograph-scheduler", daemon=True)
        self._thread.start()

    # -- for any thread -----------------------------------------------------------------------------------------

    def submit(
        self,
        prompt: Sequence[int],
        settings: Settings,
        *,
        adapter: str | None = None,
        constraint: Any = None,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        timeout: float | None = None,
        inputs: Mapping[str, Any] | None = None,
    ) -> Request:
        """Queue a prompt; its request at once.

        logprobs, prompt_logprobs: tell log-probabilities of chosen and of prompt tokens, with so many likeliest
        tokens beside each. timeout: seconds until it fails with DeadlineError. inputs: arrays [1,...] that stay for
        the row, by name. Raises QueueFullError, ClosedError, and RuntimeInputError for what can never be served.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        asked = Asked(
            ids_of(prompt), settings, adapter, constraint, logprobs, prompt_logprobs, deadline, dict(inputs or {})
        )
        self._check(asked)
        with self._changed:
            if self._closing:
                raise ClosedError("the scheduler takes no more requests: it drains or is closed")
            if len(self._queue) >= self.limit:
                raise QueueFullError(f"{self.limit} requests wait already")
            request = Request(self._next, asked)
            self._next += 1
            self._queue.append(request)
            self._changed.notify_all()
        return request

    def gauges(self) -> Gauges:
        """Counts of this moment."""
        with self._changed:
            return Gauges(
                len(self._queue), len(self._running), self.rows.most, 0.0, 0, 0, 0, 0,
                self._tokens_in, self._tokens_out, dict(self._ended),
            )  # fmt: skip

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, and wait for those there are; whether all have ended in time."""
        with self._changed:
            self._closing = True
            return self._changed.wait_for(lambda: not self._queue and not self._running, timeout)

    def close(self) -> None:
        """End what runs and waits with ClosedError, and stop. Doing it again changes nothing."""
        with self._changed:
            self._closing = self._stop = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check(self, asked: Asked) -> None:
        if not asked.prompt:
            raise RuntimeInputError("the prompt has no tokens; a model needs at least one to go on from")
        asked.settings.check([asked.prompt])
        if asked.settings.stops and self.tokenizer is None:
            raise RuntimeInputError(f"stop strings {list(asked.settings.stops)} need a tokenizer")

    # -- the thread ---------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._running or self._stop)
                if self._stop:
                    break
            self._clean()
            self._admit()
            self._turn()
        for request in [*self._queue, *(r.request for r in self._running)]:
            request.fail(ClosedError("the scheduler was closed before the request had ended"))
        with self._changed:
            self._queue.clear()
            self._running.clear()
            self._changed.notify_all()

    def _clean(self) -> None:
        """Let go of requests that were cancelled or are too late."""
        now = time.monotonic()
        with self._changed:
            waiting = list(self._queue)
        for request in waiting:
            if self._over(request, now):
                with self._changed:
                    self._queue.remove(request)
        for running in list(self._running):
            if self._over(running.request, now):
                self._leave(running)

    def _over(self, request: Request, now: float) -> bool:
        deadline = request.asked.deadline
        if request.cancelled:
            request.give(Piece(reason="cancelled"))
        elif deadline is not None and now >= deadline:
            late = now - request.submitted
            request.fail(DeadlineError(f"request {request.id} has not ended within its {late:.2f} s"))
        return request.done

    def _admit(self) -> None:
        while len(self._running) < self.rows.most:
            with self._changed:
                if not self._queue:
                    return
                request = self._queue.popleft()
                running = self._begin(request)
                if running is not None:
                    self._running.append(running)

    def _begin(self, request: Request) -> _Running | None:
        asked = request.asked
        try:
            row = self.rows.join(asked.inputs)
            text = RowText(self.tokenizer, asked.settings.stops, asked.prompt)
            ends = asked.settings.ends(self.tokenizer)
            return _Running(request, row, text, Sampler(asked.settings, 1), ends, list(asked.prompt))
        except MonographError as e:
            request.fail(e)
            return None

    def _leave(self, running: _Running) -> None:
        self.rows.leave(running.row)
        with self._changed:
            self._running.remove(running)
            self._changed.notify_all()

    def _turn(self) -> None:
        """Read one chunk of the oldest prompt that is not read yet, then one step of all rows that are."""
        reading = next((r for r in self._running if r.chosen == 0), None)
        if reading is not None:
            self._read(reading)
        for running in [r for r in self._running if r.chosen]:
            try:
                logits = self.rows.step([running.row], [running.seen[-1]])[0]
                self._choose(running, logits)
            except MonographError as e:
                running.request.fail(e)
                self._leave(running)

    def _read(self, running: _Running) -> None:
        prompt = running.request.asked.prompt
        part = prompt[running.read : running.read + self.chunk]
        try:
            logits = self.rows.read(running.row, part)
            running.read += len(part)
            if running.read == len(prompt):
                self._tokens_in += len(prompt)
                self._choose(running, logits)
        except MonographError as e:
            running.request.fail(e)
            self._leave(running)

    def _choose(self, running: _Running, logits: Array) -> None:
        asked = running.request.asked
        token = int(running.sampler(logits[None], [running.seen])[0])
        told: list[Logprob] = []
        if asked.logprobs is not None:
            told = [logprob(token, logits, logits, asked.logprobs)]
        running.chosen += 1
        self._tokens_out += 1
        reason, text, ids = None, "", []
        if token in running.ends:
            reason = "eos"
        else:
            running.seen.append(token)
            ids, text = [token], running.text.push(token)
            if running.text.stopped:
                reason = "stop"
            elif running.chosen == asked.settings.max_new_tokens:
                reason = "length"
        if reason in ("eos", "length"):
            text += running.text.end()
            reason = "stop" if running.text.stopped else reason
        running.request.give(Piece(ids, text, told, reason))
        if reason is not None:
            self._leave(running)
