"""Many requests over one session: rows join and leave between steps, prompts are read in chunks beside them."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from ..backends.onnxruntime import Session
from ..frontends.tokenizer import Tokenizer, said_ends
from ..ir.errors import MonographError, RuntimeInputError
from ..passes.adapters import ADAPTER
from .batch import FAILURES, Batch, failed
from .errors import ClosedError, DeadlineError, QueueFullError, SessionError
from .generate import Settings
from .request import Asked, Piece, Request, check_given, ids_of
from .sampling import is_whole
from .strategies import adapter_number

__all__ = ["Gauges", "Piece", "Request", "Scheduler"]

QUEUE, ROWS, CHUNK = 256, 8, 256
PREFIX_BYTES = 256 << 20


@dataclass(frozen=True)
class Gauges:
    """How busy a scheduler is. cache_used: share of the places for tokens in rows that are taken, 0 to 1.

    prefix_hits, prefix_misses: prompts that began with a known prefix, and those that did not; prefix_tokens: tokens
    that were not read again. tokens_in, tokens_out: prompt tokens and chosen tokens so far. ended: requests that have
    ended, by reason or by the name of their error. alone: why rows are computed one at a time ("": together). whole:
    why a prompt goes on from whole states that were kept, and not from any block that is known ("": it does).
    cache_bytes: of the buffers of rows; memory that nobody has written to yet is not taken.
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
    alone: str = ""
    whole: str = ""
    cache_bytes: int = 0


class Scheduler:
    """One thread that owns a session and serves requests of any thread; a context manager.

    Requests get rows in the order in which they came. One that fails, ends or is cancelled frees its row before the
    next step, and the others go on; where the session itself fails, all that run fail with SessionError, and those
    that wait are served by new rows. failure: why the thread has ended by itself, so that nothing is served any more.
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
        """rows: most requests at once. queue: most that wait. prefix_bytes: memory for what was read of prompts that
        others may begin with (0: none). chunk: most tokens of prompts that are read between two steps."""
        limits = {"rows": (rows, 1), "queue": (queue, 1), "chunk": (chunk, 1), "prefix_bytes": (prefix_bytes, 0)}
        for name, (value, least) in limits.items():
            if not is_whole(value):
                raise RuntimeInputError(f"{name} is {value!r}, expected a whole number")
            if value < least:
                raise RuntimeInputError(f"{name} is {value}, expected at least {least}")
        self.session, self.tokenizer, self.limit = session, tokenizer, queue
        self._made = (rows, chunk, prefix_bytes)
        self._changed = threading.Condition()
        self._queue = deque[Request]()
        self._joining: Request | None = None  # which has left the queue and has no row yet
        self._counts, self._ended, self._next = Counter[str](), Counter[str](), 0
        self._closing = self._stop = self._look = self._idle = False
        self.failure: MonographError | None = None
        self._batch = self._new_batch()
        self._eos = tuple(dict.fromkeys([*(tokenizer.eos_ids if tokenizer is not None else ()),
                                         *said_ends(session.folder, session.config)]))  # fmt: skip
        self._thread = threading.Thread(target=self._serve, name="monograph-scheduler", daemon=True)
        self._thread.start()

    # -- for any thread --------------------------------------------------------------------------------------------

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

        logprobs, prompt_logprobs: tell log-probabilities of chosen and of prompt tokens, with so many likeliest tokens
        beside each. timeout: seconds until it fails with DeadlineError. inputs: arrays [1,...] that stay for the row,
        by name. adapter: one that the folder was built with (None: the base). constraint: see `Grammars`. Raises
        QueueFullError, ClosedError, and RuntimeInputError for what can never be served.
        """
        check_given(settings, timeout, inputs)
        deadline = None if timeout is None else time.monotonic() + timeout
        limits = [n for n in (settings.context, self.session.contract.positions or None) if n is not None]
        told = {k: v for k, v in (("logprobs", logprobs), ("prompt_logprobs", prompt_logprobs)) if v is not None}
        settings = replace(settings, context=min(limits, default=None), **told)
        beside = dict(inputs or {})
        if adapter is not None:
            beside[ADAPTER] = np.array([adapter_number(self.session.contract.adapters, adapter)])
        asked = Asked(ids_of(prompt), settings, adapter, constraint, deadline, beside)
        self._check(asked)
        with self._changed:
            if self._closing:
                raise ClosedError("the scheduler takes no more requests: it drains or is closed")
            if len(self._queue) >= self.limit:
                raise QueueFullError(f"{self.limit} requests wait already")
            request = Request(self._next, asked, self._notice)
            self._next += 1
            self._queue.append(request)
            if deadline is not None:
                self._look = True
            self._changed.notify_all()
        return request

    def gauges(self) -> Gauges:
        """Counts of this moment."""
        with self._changed:
            batch, counts = self._batch, self._counts
            known = batch.prefixes
            return Gauges(
                queued=len(self._queue),
                running=len(batch.running),
                rows=batch.rows.most,
                cache_used=batch.used,
                prefix_hits=known.hits,
                prefix_misses=known.misses,
                prefix_tokens=known.tokens,
                prefix_bytes=known.bytes,
                tokens_in=counts["in"] + batch.tokens_in,
                tokens_out=counts["out"] + batch.tokens_out,
                ended=dict(self._ended),
                alone=batch.rows.alone,
                whole=batch.rows.whole,
                cache_bytes=batch.rows.bytes,
            )

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, and wait for those there are; whether all have ended in time."""
        with self._changed:
            self._closing = True
            return self._changed.wait_for(lambda: self._idle and not self._queue, timeout)

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
        settings, stream = asked.settings, self.session.contract.stream
        if not asked.prompt:
            raise RuntimeInputError("the prompt has no tokens; a model needs at least one to go on from")
        bound = self.session.contract.bounds.get(stream.ids) if stream is not None else None
        strange = next((i for i in asked.prompt if i < 0 or (bound is not None and i >= bound)), None)
        if strange is not None:
            raise RuntimeInputError(f"the prompt has the id {strange}, expected 0 to {(bound or 0) - 1}")
        if missing := self.session.with_tokens:
            raise RuntimeInputError(f"the model takes {', '.join(missing)} with every token, which is not given here")
        settings.check([asked.prompt])
        settings.ends(self.tokenizer)
        if settings.stops and self.tokenizer is None:
            raise RuntimeInputError(f"stop strings {list(settings.stops)} need a tokenizer")

    def _notice(self) -> None:
        """A request was cancelled: look for it before the next step."""
        self._look = True

    # -- the thread ------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        error: MonographError = SessionError("the scheduler has stopped")
        try:
            while self._wait():
                self._clean()
                self._admit()
                if not self._batch.turn():
                    self._recover(SessionError("the session failed, and was opened again"))
            error = ClosedError("the scheduler was closed before the request had ended")
        except FAILURES as e:
            error = failed(e)
        finally:
            self._finish(error)

    def _wait(self) -> bool:
        """Wait for something to do; False once the scheduler is closed."""
        with self._changed:
            if not self._queue and not self._batch.running:
                self._idle = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue or self._stop)
                self._idle = False
            return not self._stop

    def _clean(self) -> None:
        """Let go of requests that were cancelled or are too late."""
        if not self._look:
            return
        self._look, now = False, time.monotonic()
        with self._changed:
            over = [r for r in self._queue if self._over(r, now)]
            for request in over:
                self._queue.remove(request)
        for request in over:
            self._count(self._over(request, now))
            self._tell(request, now)
        for running in [*self._batch.running]:
            if why := self._over(running.request, now):
                self._batch.leave(running, why)
                self._tell(running.request, now)

    def _over(self, request: Request, now: float) -> str:
        """Why a request ends before its time; "" where it goes on."""
        deadline = request.asked.deadline
        if deadline is not None:
            self._look = True  # Look again before the next step.
        if request.cancelled:
            return "cancelled"
        return DeadlineError.__name__ if deadline is not None and now >= deadline else ""

    def _tell(self, request: Request, now: float) -> None:
        if request.cancelled:
            request.give(Piece(reason="cancelled"))
        else:
            waited = now - request.submitted
            request.fail(DeadlineError(f"request {request.id} has not ended {waited:.2f} s after it came"))

    def _admit(self) -> None:
        while not self._batch.full:
            with self._changed:
                if not self._queue:
                    return
                request = self._joining = self._queue.popleft()
            settings = request.asked.settings
            ends = frozenset(self._eos) if settings.eos is None else settings.ends(self.tokenizer)
            self._batch.admit(request, ends)
            self._joining = None

    def _count(self, why: str) -> None:
        with self._changed:
            self._ended[why] += 1

    def _new_batch(self) -> Batch:
        rows, chunk, prefix_bytes = self._made
        return Batch(self.session, self.tokenizer, rows, chunk, prefix_bytes, self._count)

    def _recover(self, error: MonographError) -> None:
        """Fail what runs, open the session again and go on with what waits."""
        old = self._batch
        for running in [*old.running]:
            old.fail(running, error)
        self.session.reload()
        batch = self._new_batch()
        with self._changed:
            self._counts["in"] += old.tokens_in
            self._counts["out"] += old.tokens_out
            self._batch = batch

    def _finish(self, error: MonographError) -> None:
        """Nobody waits for a thread that has ended."""
        self.failure = None if isinstance(error, ClosedError) else error
        with self._changed:
            self._closing = self._stop = True
            waiting = [*([self._joining] if self._joining is not None else []), *self._queue]
            self._queue.clear()
        for request in waiting:
            self._count(type(error).__name__)
            request.fail(error)
        for running in [*self._batch.running]:
            self._batch.fail(running, error)
        with self._changed:
            self._idle = True
            self._changed.notify_all()
