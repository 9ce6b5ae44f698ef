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
    """Numbers for the graphs of one session, and whether they are checked at first use against ordinary runs."""

    def __init__(self, reasons: Sequence[str] = (), *, check: bool = False) -> None:
        self.reasons, self.check = list(reasons), check
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
        seen: Buffer,
    ) -> Call:
        """A call over buffers whose runs are captured as a graph with this number. seen: what a check compares."""
        call = memory.bind(loaded, inputs, outputs, graph)
        if graph == UNCAPTURED or not self.check:
            return call
        plain = memory.bind(loaded, inputs, outputs)
        return CheckedCall(call, plain, memory, seen, loaded.file)


class CheckedCall:
    """A captured call whose first runs are held against ordinary ones.

    A step may run again: it writes the same to the same places, and states take turns in two buffers.
    """

    def __init__(self, captured: Call, plain: Call, memory: Memory, seen: Buffer, place: str) -> None:
        self.captured, self.plain, self.memory, self.seen, self.place = captured, plain, memory, seen, place
        self.left = CHECKED

    def read(self) -> Array:
        """The logits, which are then wiped out, so that a replay over other buffers is seen."""
        found = np.array(self.memory.download(self.seen), np.float32)
        self.memory.write(self.seen, np.zeros((), self.seen.dtype))
        return found

    def run(self) -> None:
        """Raises RuntimeInputError where a captured run gives other numbers than an ordinary one."""
        if not self.left:
            self.captured.run()
            return
        self.plain.run()
        wanted = self.read()
        self.captured.run()
        found = np.array(self.memory.download(self.seen), np.float32)
        self.left -= 1
        off = np.abs(found - wanted)
        if not off.max() <= TOLERANCE * np.abs(wanted).max():
            row = int(off.reshape(len(off), -1).max(axis=1).argmax())
            ids = [int(x[row].argmax()) for x in (found, wanted)]
            what = f"a captured step gives token {ids[0]} for row {row} where an ordinary one gives {ids[1]}"
            details = [f"logits are off by {off.max():.3g}, run {CHECKED - self.left} of this binding"]
            raise RuntimeInputError(what, place=self.place, details=details, hint="open it with capture=False")


NEVER = Captures(["nobody asked for it"])
"""For calls that are made once."""
