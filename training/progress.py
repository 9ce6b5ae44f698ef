"""What a training run tells while it runs: a live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_LINES = 20
_PAUSE = 0.2
"""Seconds between two texts of a line."""


@dataclass(frozen=True)
class Step:
    """State after `step` of `steps` updates. Losses are nats per label; `loss` was taken before this update.

    held_out: mean loss on the held-out part after this update, and metrics: what else was measured there by name,
    where it was measured. share: of the device's measured arithmetic, of the time since the last step. unit: what is
    counted by the second: tokens, or rows of data without any.
    """

    step: int
    steps: int
    loss: float
    held_out: float | None
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    seconds: float
    seconds_left: float
    share: float | None = None
    metrics: Mapping[str, float] | None = None
    unit: str = "tokens"

    def __str__(self) -> str:
        text = f"step {self.step}/{self.steps}  loss {self.loss:.3f}"
        held_out = {} if self.held_out is None else {"held-out": self.held_out}
        for name, value in {**held_out, **(self.metrics or {})}.items():
            text += f"  {name} {value:.3f}"
        text += f"  {self.tokens_per_second:,.0f} {self.unit}/s"
        if self.share is not None:
            text += f" ({self.share:.0%} of peak)"
        return f"{text}  {self.seconds:.0f} s, {self.seconds_left:.0f} s left"

    def numbers(self) -> dict[str, float]:
        """What changes from step to step, by name."""
        names = ("loss", "held_out", "learning_rate", "gradient_norm", "tokens_per_second", "share")
        found = {k: getattr(self, k) for k in names}
        return {k: v for k, v in found.items() if v is not None} | dict(self.metrics or {})


class Line:
    """One line in the output of a notebook's cell, which each text replaces."""

    def __init__(self, show: Any) -> None:
        self._show, self._handle, self._last = show, None, 0.0

    @staticmethod
    def of_notebook() -> Line | None:
        """The line, if this runs in a notebook."""
        ipython: Any = sys.modules.get("IPython")
        if ipython is None or getattr(ipython.get_ipython(), "kernel", None) is None:
            return None
        return Line(ipython.display.display)

    def put(self, text: str, *, now: bool = True) -> None:
        """Show a text; not `now`: unless another one has just been shown."""
        if not now and time.monotonic() - self._last < _PAUSE:
            return
        content = {"text/plain": text}
        if self._handle is None:
            self._handle = self._show(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)
        self._last = time.monotonic()


@contextlib.contextmanager
def preparing(what: str, shown: bool = True) -> Generator[None]:
    """Say on standard error what is done before the first step, while it is."""
    if shown and sys.stderr.isatty():
        with Console(stderr=True).status(what):
            yield
        return
    if shown:
        print(what, file=sys.stderr, flush=True)
    yield


class Display:
    """Shows steps on standard error, or in one line of a notebook; a context manager."""

    def __init__(self, steps: int, shown: bool = True) -> None:
        self.steps, self.shown = steps, shown
        self.held_out = ""
        self.line = Line.of_notebook() if shown else None
        self.bar = _bar() if shown and self.line is None and sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
            self.task = self.bar.add_task("training", total=self.steps, numbers="", left="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def note(self, text: str) -> None:
        """Say something beside the steps: where none are shown, as a warning of the log."""
        if self.bar is not None:
            self.bar.console.print(text, markup=False)
        elif self.shown:
            print(text, file=sys.stderr, flush=True)
        else:
            logging.getLogger(__name__).warning("%s", text)

    def show(self, step: Step) -> None:
        if self.line is not None:
            self.held_out = self.held_out if step.held_out is None else f"\nmeasured: {step}"
            self.line.put(f"{step}{self.held_out}", now=step.held_out is not None or step.step == step.steps)
        elif self.bar is not None:
            self.held_out = self.held_out if step.held_out is None else f"held-out {step.held_out:.3f}  "
            numbers = f"loss {step.loss:.3f}  {self.held_out}{step.tokens_per_second:,.0f} {step.unit}/s"
            if step.share is not None:
                numbers += f"  {step.share:.0%} of peak"
            # Not by rich, which would count the steps before a resumed one as done just now.
            left = f"{timedelta(seconds=round(step.seconds_left))} left"
            self.bar.update(self.task, completed=step.step, numbers=numbers, left=left)
        elif self.shown and (step.held_out is not None or step.step % max(self.steps // _LINES, 1) == 0):
            print(step, file=sys.stderr, flush=True)


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=Console(stderr=True),
    )
