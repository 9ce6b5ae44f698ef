"""What a scheduler gives for a prompt: a request whose pieces arrive as tokens are chosen."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from ..ir.errors import MonographError, RuntimeInputError
from .generate import Generation, Reason, Settings, Timing
from .logprobs import Logprob

LISTENING = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What a listener may end with, such as a loop that is closed; it is not called again, and hurts no other request."""


@dataclass(frozen=True)
class Piece:
    """What one step, or several, brought to a request.

    ids: tokens chosen, without the end token. text: what is certain now and was not before. logprobs: one for each
    chosen token, the end token included, where they were asked for. reason: why the request ended, in its last piece.
    """

    ids: list[int] = field(default_factory=list[int])
    text: str = ""
    logprobs: list[Logprob] = field(default_factory=list[Logprob])
    reason: Reason | None = None


@dataclass(frozen=True)
class Asked:
    """What was asked for.

    deadline: on the clock of `time.monotonic`. inputs: arrays [1,...] that stay for the row, by name.
    """

    prompt: list[int]
    settings: Settings
    adapter: str | None = None
    constraint: Any = None
    deadline: float | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Request:
    """A prompt on its way. Iterating gives its pieces as they come, once; every thread may call every method.

    id: another one for each request of a scheduler. submitted, first_token, ended: on the clock of `time.monotonic`.
    cached: tokens of the prompt that were not read again. prompt_logprobs: of the prompt tokens, where asked for.
    """

    def __init__(self, id: int, asked: Asked, notice: Callable[[], None]) -> None:
        self.id, self.asked, self._notice = id, asked, notice
        self.cancelled = False
        self.submitted = time.monotonic()
        self.first_token: float | None = None
        self.ended: float | None = None
        self.cached = 0
        self.prompt_logprobs: list[Logprob | None] = []
        self._pieces, self._all = deque[Piece](), list[Piece]()
        self._error: MonographError | None = None
        self._changed = threading.Condition()
        self._listeners = list[Callable[[], None]]()

    def cancel(self) -> None:
        """End it before the next step; what came so far stays. Doing it again, or too late, changes nothing."""
        self.cancelled = True
        self._notice()

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self.ended is not None

    def __iter__(self) -> Iterator[Piece]:
        """Pieces as they come. Raises the typed error that ended the request, after what came before it."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._pieces) or self.ended is not None)
                if not self._pieces:
                    if self._error is not None:
                        raise self._error
                    return
                piece = self._pieces.popleft()
            yield piece

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """The same for a coroutine, whose loop is woken from the thread of the scheduler."""
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(woken.set)

        self.listen(wake)
        try:
            while True:
                woken.clear()
                for piece in self.take():
                    yield piece
                if self.done and not self._pieces:
                    if self._error is not None:
                        raise self._error
                    return
                await woken.wait()
        finally:
            self.forget(wake)

    def take(self) -> list[Piece]:
        """Pieces that have come and were not taken yet, without waiting."""
        with self._changed:
            found = list(self._pieces)
            self._pieces.clear()
        return found

    def listen(self, notify: Callable[[], None]) -> None:
        """Call `notify` from the scheduler's thread whenever a piece has come or the request has ended; once now.

        Every row waits until it returns, so that it should only wake somebody.
        """
        with self._changed:
            self._listeners.append(notify)
        notify()

    def forget(self, notify: Callable[[], None]) -> None:
        """Stop calling `notify`."""
        with self._changed:
            if notify in self._listeners:
                self._listeners.remove(notify)

    def result(self, timeout: float | None = None) -> Generation:
        """Wait until it has ended; everything that came. Raises the typed error that ended it, or TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.ended is not None, timeout):
                raise TimeoutError(f"request {self.id} has not ended within {timeout} s")
        if self._error is not None:
            raise self._error
        pieces = self._all
        ids = [i for p in pieces for i in p.ids]
        first, ended = self.first_token or self.ended or 0.0, self.ended or 0.0
        decoded = max(0, len(ids) - 1)
        timing = Timing(len(self.asked.prompt), len(ids), first - self.submitted, ended - first, decoded)
        return Generation(
            self.asked.prompt,
            ids,
            "".join(p.text for p in pieces),
            pieces[-1].reason or "length",
            timing,
            [x for p in pieces for x in p.logprobs],
            self.prompt_logprobs,
        )

    # -- for the scheduler --------------------------------------------------------------------------------------

    def give(self, piece: Piece) -> None:
        """Add a piece; its reason ends the request."""
        with self._changed:
            if self.done:
                return
            self.first_token = self.first_token or (time.monotonic() if piece.ids or piece.reason else None)
            self._pieces.append(piece)
            self._all.append(piece)
            if piece.reason is not None:
                self.ended = time.monotonic()
            self._tell()

    def fail(self, error: MonographError) -> None:
        """End the request with an error."""
        with self._changed:
            if self.done:
                return
            self._error, self.ended = error, time.monotonic()
            self._tell()

    def _tell(self) -> None:
        self._changed.notify_all()
        for notify in [*self._listeners]:
            try:
                notify()
            except LISTENING:
                self._listeners.remove(notify)


def ids_of(prompt: Sequence[int]) -> list[int]:
    """The ids of a prompt as plain integers. Raises RuntimeInputError for what is no list of them."""
    try:
        found = np.asarray(prompt)
    except (ValueError, OverflowError):  # lists of different lengths; a number beyond all integers of NumPy
        found = np.zeros((0, 0))
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise RuntimeInputError(f"the prompt is {prompt!r:.60}, expected a list of token ids")
    return [int(i) for i in found]


def check_given(settings: Any, timeout: Any, inputs: Any) -> None:
    """Raise RuntimeInputError for arguments of wrong types, which nobody could tell of in another thread."""
    if not isinstance(settings, Settings):
        raise RuntimeInputError(f"settings are {type(settings).__name__}, expected Settings")
    fits = not isinstance(timeout, bool) and isinstance(timeout, Real) and not math.isnan(float(timeout))
    if timeout is not None and not fits:
        raise RuntimeInputError(f"timeout is {timeout!r:.60}, expected seconds, or None")
    if inputs is not None and not isinstance(inputs, Mapping):
        raise RuntimeInputError(f"inputs are {type(inputs).__name__}, expected arrays by name")
