"""Which steps of a session are captured as CUDA graphs, and why others are not.

A captured step is replayed by one call in place of a launch for every kernel. It reads and writes the addresses that
it was captured with and sees no number of the host again, so every binding has a graph of its own, whose number is
never given to another, and what a kernel reads on the host is the largest that the binding has room for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.errors import RuntimeInputError
from .contract import Contract
from .memory import Array, Buffer, Call, Memory
from .runtime import UNCAPTURED, Loaded

CHECKED = 4
"""Runs of a captured call that are checked: one that captures, and some that replay it for longer rows."""

TOLERANCE = 1e-3
"""How far logits may be off, as a share of the largest: the same kernels ran."""

WIPED = -7
"""No token and no logit that a step gives."""


@dataclass(frozen=True)
class Captured:
    """True where the steps of a session are captured; else `reasons` say why not, with the node."""

    reasons: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.reasons

    def __str__(self) -> str:
        return "; ".join(self.reasons) or "captured"


def refused(contract: Contract, memory: Memory, *, asked: bool) -> list[str]:
    """Why no step of a session is captured; nothing where all are."""
    if not memory.captures:
        return [f"a session on {contract.provider} has nothing to capture"]
    if not asked:
        return ["the session was opened with capture=False"]
    if contract.kind != "decoder":
        return [f"{contract.family} makes no steps"]
    if not contract.lengths:
        return ["caches of the graph for masks grow, and a captured step has fixed shapes"]
    return list(contract.uncaptured)


class Captures:
    """Numbers for the graphs of one session. reasons: why its steps are not captured, also those found on the way.

    strict: a captured step that differs from an ordinary one is an error, and not the end of capturing.
    """

    def __init__(self, reasons: Sequence[str] = (), *, strict: bool = False) -> None:
        self.reasons, self.strict = list(reasons), strict
        self._last = 0

    def new(self) -> int:
        """The number of the graph of a new binding; UNCAPTURED where steps are not captured."""
        if self.reasons:
            return UNCAPTURED
        self._last += 1
        return self._last

    @property
    def state(self) -> Captured:
        return Captured(tuple(self.reasons))

    def bind(
        self,
        memory: Memory,
        loaded: Loaded,
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
        graph: int,
        logits: Buffer,
        tokens: Buffer | None,
    ) -> Call:
        """A call over buffers whose runs are captured as a graph with this number. logits, tokens: what it gives; a
        check compares the tokens where there are some, and the logits if it is strict."""
        plain = memory.bind(loaded, inputs, outputs)
        if graph == UNCAPTURED:
            return plain
        seen = Seen(memory, logits if tokens is None or self.strict else tokens)
        return CheckedCall(self, memory.bind(loaded, inputs, outputs, graph), plain, seen, loaded.file)


@dataclass(frozen=True)
class Seen:
    """What a check compares: logits, or the tokens that the graph chose."""

    memory: Memory
    buffer: Buffer

    def take(self) -> Array:
        """The numbers, which are then wiped out, so that a replay over other buffers is seen."""
        found = self.read()
        self.memory.write(self.buffer, np.full((), WIPED, self.buffer.dtype))
        return found

    def read(self) -> Array:
        return np.array(self.memory.download(self.buffer), np.float64)

    def difference(self, found: Array, wanted: Array) -> str:
        """How what a captured step gives differs from what an ordinary one does; "" where it does not."""
        off = np.nan_to_num(np.abs(found - wanted), nan=np.inf).reshape(len(found), -1)
        chosen = np.issubdtype(self.buffer.dtype, np.integer)
        if off.max() <= (0 if chosen else TOLERANCE * np.abs(wanted).max()) or not np.isfinite(wanted).all():
            return ""
        row = int(off.max(axis=1).argmax())
        ids = [int(x[row].ravel()[0] if chosen else x[row].argmax()) for x in (found, wanted)]
        return f"a captured step gives token {ids[0]} for row {row} where an ordinary one gives {ids[1]}"


class CheckedCall:
    """A captured call whose first runs are held against ordinary ones, to which it goes back where they differ.

    A step may run again: it writes the same to the same places, and states take turns in two buffers.
    """

    def __init__(self, captures: Captures, captured: Call, plain: Call, seen: Seen, place: str) -> None:
        self.captures, self.captured, self.plain, self.seen, self.place = captures, captured, plain, seen, place
        self.left = CHECKED

    def run(self) -> None:
        """Raises RuntimeInputError where a captured run gives other numbers than an ordinary one, if that is asked."""
        if self.captures.reasons:
            self.plain.run()
        elif not self.left:
            self.captured.run()
        else:
            self.check()

    def check(self) -> None:
        self.plain.run()
        wanted = self.seen.take()
        self.left -= 1
        try:
            self.captured.run()
        except RuntimeInputError as e:
            reason = f"a step cannot be captured: {e.what}"
        else:
            reason = self.seen.difference(self.seen.read(), wanted)
        if reason and self.captures.strict:
            raise RuntimeInputError(reason, place=self.place, hint="open it with capture=False")
        if reason:
            self.captures.reasons.append(reason)
            self.plain.run()


NEVER = Captures(["nobody asked for it"])
"""For calls that are made once."""
