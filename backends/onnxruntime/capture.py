"""Which steps of a session are captured as CUDA graphs, and why others are not.

A captured step is replayed by one call in place of a launch for every kernel. It reads and writes the addresses that
it was captured with and sees no number of the host again, so every binding has a graph of its own, whose number is
never given to another, and what a kernel reads on the host is the largest that the binding has room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .contract import Contract
from .memory import Memory
from .runtime import UNCAPTURED


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


NEVER = Captures(["nobody asked for it"])
"""For calls that are made once."""
