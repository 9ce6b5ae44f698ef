"""Times of several builds of one model, taken in turn, and whether one is faster beyond the noise."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

ROUNDS, MOST_ROUNDS = 5, 25
"""Fewest and most rounds of a comparison; the fewest are made whatever they take."""

MARGIN = 0.01
"""A change that is less than this faster is not worth being different."""


class Timed(Protocol):
    """Something whose time is a sum over versions, each counted `weights` times, for every load."""

    @property
    def weights(self) -> tuple[int, ...]: ...

    @property
    def loads(self) -> Sequence[object]: ...

    def seconds(self, load: int, version: int) -> float: ...


@dataclass(frozen=True)
class Timing:
    """How one build compares with the first one, by round.

    seconds: of each load, the median. ratios: of each round the time over that of the first build, the mean over
    loads.
    """

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def low(self) -> float:
        return _quantile(self.ratios, 0.25)

    @property
    def high(self) -> float:
        return _quantile(self.ratios, 0.75)

    @property
    def faster(self) -> bool:
        """Whether three rounds of four were faster by more than the margin."""
        return self.high < 1 - MARGIN


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def compared(subjects: Sequence[Timed], seconds: float, clock: Callable[[], float] = time.perf_counter) -> list[Timing]:
    """Time all in turn for about so many seconds, at least ROUNDS rounds; the first is what the others are held to.

    What a round notes of a version is a difference to the first build that was run right beside it, so that a noisy
    moment is in both. A round before the first one warms up and does not count.
    """
    first = subjects[0]
    count, versions = len(first.loads), len(first.weights)
    noted: list[list[list[list[float]]]] = []  # By round, load, version and subject.
    end = clock() + seconds
    for number in range(MOST_ROUNDS + 1):
        if number > ROUNDS and clock() >= end:
            break
        order = [(i + number) % len(subjects) for i in range(len(subjects))]
        found = [[_turn(subjects, order, load, version) for version in range(versions)] for load in range(count)]
        if number:
            noted.append(found)
    return [_timing(first.weights, noted, i) for i in range(len(subjects))]


def _turn(subjects: Sequence[Timed], order: Sequence[int], load: int, version: int) -> list[float]:
    found = [0.0] * len(subjects)
    for i in order:
        found[i] = subjects[i].seconds(load, version)
    return found


def _timing(weights: Sequence[int], noted: Sequence[Sequence[Sequence[Sequence[float]]]], subject: int) -> Timing:
    loads = range(len(noted[0]))

    def whole(load: int, i: int) -> float:
        """Median times of the versions, composed."""
        each = (statistics.median(r[load][v][i] for r in noted) for v in range(len(weights)))
        return sum(w * t for w, t in zip(weights, each, strict=True))

    firsts = [max(whole(load, 0), statistics.median(r[load][0][0] for r in noted)) for load in loads]
    ratios: list[float] = []
    for r in noted:
        more = (sum(w * (t[subject] - t[0]) for w, t in zip(weights, r[load], strict=True)) for load in loads)
        ratios.append(1 + sum(m / t for m, t in zip(more, firsts, strict=True)) / len(firsts))
    return Timing(tuple(firsts[i] if subject == 0 else whole(i, subject) for i in loads), tuple(ratios))
