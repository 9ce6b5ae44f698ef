"""How parameters start: drawn numbers, or what a checkpoint alone has."""

from __future__ import annotations

from dataclasses import dataclass

FIXED, FROZEN = "fixed", "frozen"
"""The kinds of buffers, and of parameters that do not train."""


@dataclass(frozen=True, slots=True)
class Init:
    """How a parameter starts when trained from nothing: normal(std), uniform(std) around 0, zeros or ones.

    `fixed` and `frozen` are none of these: buffers, and parameters that do not train. No seed draws them.
    """

    kind: str
    std: float = 0.0

    @property
    def fixed(self) -> bool:
        """Whether it is a buffer."""
        return self.kind == FIXED

    @property
    def trains(self) -> bool:
        """Whether training changes it."""
        return self.kind not in (FIXED, FROZEN)

    def __str__(self) -> str:
        return f"{self.kind}({self.std!r})" if self.kind in ("normal", "uniform") else self.kind
