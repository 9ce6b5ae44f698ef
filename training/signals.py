"""SIGINT and SIGTERM end a run after the step it is at, so that it can write a checkpoint."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Generator
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """Whether a signal asked the run to end, and its name."""

    name: str = ""

    @property
    def asked(self) -> bool:
        return bool(self.name)

    @property
    def exit_code(self) -> int:
        """What a shell gives a command that the signal ended; 1 where it came to another process."""
        return 128 + signal.Signals[self.name] if self.asked else 1


@contextlib.contextmanager
def stoppable() -> Generator[Stop]:
    """Notes signals inside the block; a second one acts as it would have without. Only the main thread gets any."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # None is a handler that was not set from Python and cannot be set again.
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        stop.name = signal.Signals(number).name
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
