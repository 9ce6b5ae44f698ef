"""One opened folder for several generations at the same time: each has a session of its own over the same graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..backends.onnxruntime import Session
from ..ir.errors import RuntimeInputError

SPARE = 4
"""Sessions that are kept with their buffers, beside the first."""


class Sessions:
    """The session of an engine, opened when first used, and others beside it. For every thread."""

    def __init__(self, session: Session | Callable[[], Session]) -> None:
        self._opener: Callable[[], Session] | None = None if isinstance(session, Session) else session
        self.opened: Session | None = session if isinstance(session, Session) else None
        self._lock, self._spare, self._taken = threading.RLock(), list[Session](), False

    @property
    def own(self) -> Session:
        """The first one. Raises what opening it raises, and RuntimeInputError once all is closed."""
        with self._lock:
            if self.opened is None:
                if self._opener is None:
                    raise RuntimeInputError("the engine is closed")
                self.opened, self._opener = self._opener(), None
            return self.opened

    @property
    def said(self) -> str:
        """Whether it is open, for people."""
        return "open" if self.opened else "opened when it is first used" if self._opener else "closed"

    def take(self) -> Session:
        """A session that nobody generates with: the first if that is free, else another over its graphs."""
        with self._lock:
            first = self.own
            if not self._taken:
                self._taken = True
                return first
            return self._spare.pop() if self._spare else first.another()

    def give(self, session: Session) -> None:
        """Let others generate with a session."""
        with self._lock:
            if session is self.opened:
                self._taken = False
            elif self.opened is not None and len(self._spare) < SPARE:
                self._spare.append(session)

    def close(self) -> None:
        """Let go of all. Doing it again changes nothing."""
        with self._lock:
            self.opened = self._opener = None
            self._spare.clear()
