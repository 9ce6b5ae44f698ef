"""Patterns in sequences: what repeats, and how the order of layers is put into words."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import groupby


def repeats(sequence: Sequence[Hashable]) -> tuple[int, int, int] | None:
    """(start, period, times) of the longest stretch that repeats itself, the shortest period first; None without."""
    best: tuple[int, int, int] | None = None
    n = len(sequence)
    for period in range(1, n // 2 + 1):
        start = 0
        while start + 2 * period <= n:
            end = start
            while end + period < n and sequence[end] == sequence[end + period]:
                end += 1
            times = (end - start) // period + 1
            if times >= 2 and (best is None or times * period > best[1] * best[2]):
                best = start, period, times
            start = max(end, start) + 1
    return best


def order_of(names: Sequence[str]) -> str:
    """Which layers follow which: `4 × [5 local + 1 global] + 2 local`; nothing where all are the same."""
    if len(set(names)) < 2:
        return ""
    choices = [_runs(names)]
    n = len(names)
    for period in range(2, n // 2 + 1):
        times = 1
        while (times + 1) * period <= n and names[times * period : (times + 1) * period] == names[:period]:
            times += 1
        if times > 1:
            rest = names[times * period :]
            choices.append(f"{times} × [{_runs(names[:period])}]" + (f" + {_runs(rest)}" if rest else ""))
    best = min(choices, key=len)
    return best if len(best) <= 72 else ""


def _runs(names: Sequence[str]) -> str:
    return " + ".join(f"{len(list(run))} {name}" for name, run in groupby(names))


def ranges(numbers: Sequence[int], what: str) -> str:
    """`layers 0–2, 5, 7, 8` of numbers in order, and `layer 3` of one."""
    said: list[str] = []
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [n for _, n in group]
        said.append(f"{run[0]}" if len(run) == 1 else f"{run[0]}{', ' if len(run) == 2 else '–'}{run[-1]}")
    return f"{what}{'s' if len(numbers) > 1 else ''} {', '.join(said)}"
