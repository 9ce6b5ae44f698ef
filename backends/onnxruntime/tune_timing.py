"""Times of several builds of one model, taken in turn, and whether one is faster beyond the noise."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

ROUNDS, MOST_ROUNDS = 5, 25
"""Fewest and most rounds of a comparison; the fewest are made whatever they take."""

NOISY = 0.3
"""A wider spread between the quartiles of ratios says nothing about which is faster."""

HOPELESS_ROUNDS, HOPELESS, FAR = 3, 1.3, 4.0
"""After so many rounds, a build that took at least so many times as long in each is given up; after the one that warms
up, one that took the last number of times as long."""

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
    loads. plain: the median of what all versions took over what those of the first build took, without composing.
    """

    seconds: tuple[float, ...]
    ratios: tuple[float, ...]
    plain: float

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
    def noisy(self) -> bool:
        """Whether the rounds differ so much that they tell nothing."""
        return self.high - self.low > NOISY or self.low <= 0

    @property
    def faster(self) -> bool:
        """Whether three rounds of four were faster by more than the margin, and what was run was, too."""
        return not self.noisy and self.high < 1 - MARGIN and self.plain < 1


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def compared(subjects: Sequence[Timed], seconds: float, clock: Callable[[], float] = time.perf_counter) -> list[Timing]:
    """Time all in turn for about so many seconds, at least ROUNDS rounds; the first is what the others are held to.

    What a round notes of a version is a difference to the first build that was run right beside it, so that a noisy
    moment is in both. A round before the first one warms up and does not count. Whoever was much slower in each of
    the first rounds is not run any more.
    """
    notes = [_Notes(subjects[0].weights, len(subjects[0].loads)) for _ in subjects]
    running = list(range(len(subjects)))
    end = clock() + seconds
    for number in range(MOST_ROUNDS + 1):
        if number > ROUNDS and clock() >= end:
            break
        order = running[number % len(running) :] + running[: number % len(running)]
        found = _round(subjects, order)
        for i in running if number else _far(found):
            notes[i].add(found[0], found[i])
        if number == 0:
            running = [i for i in running if not notes[i].rounds]
        if number == HOPELESS_ROUNDS:
            running = [i for i in running if min(notes[i].ratios(notes[0])) < HOPELESS]
    return [Timing(n.whole(), tuple(n.ratios(notes[0])), n.plain()) for n in notes]


Round = list[list[float]]
"""Seconds by load and version."""


def _far(found: Mapping[int, Round]) -> list[int]:
    """Who took so much longer than the first one that no more rounds are needed."""
    times = {i: sum(map(sum, r)) for i, r in found.items()}
    return [i for i, t in times.items() if t > FAR * times[0]]


def _round(subjects: Sequence[Timed], order: Sequence[int]) -> dict[int, Round]:
    """Every load and version once for each subject; those of one version one after the other."""
    first = subjects[0]
    found: dict[int, Round] = {i: [[0.0] * len(first.weights) for _ in first.loads] for i in order}
    for load in range(len(first.loads)):
        for version in range(len(first.weights)):
            for i in order:
                found[i][load][version] = subjects[i].seconds(load, version)
    return found


class _Notes:
    """The rounds of one subject, each with that of the first one."""

    def __init__(self, weights: Sequence[int], loads: int) -> None:
        self.weights, self.loads = weights, loads
        self.rounds: list[tuple[Round, Round]] = []

    def add(self, first: Round, own: Round) -> None:
        self.rounds.append((first, own))

    def whole(self) -> tuple[float, ...]:
        """Seconds of each load: medians of the versions, composed; at least those of the shortest version."""
        found: list[float] = []
        for load in range(self.loads):
            each = [statistics.median(own[load][v] for _, own in self.rounds) for v in range(len(self.weights))]
            found.append(max(each[0], sum(w * t for w, t in zip(self.weights, each, strict=True))))
        return tuple(found)

    def ratios(self, first: _Notes) -> list[float]:
        """Of each round the time over that of the first subject, the mean over loads."""
        base = first.whole()
        found: list[float] = []
        for theirs, own in self.rounds:
            more = [self._sum(own[i]) - self._sum(theirs[i]) for i in range(self.loads)]
            found.append(1 + sum(m / t for m, t in zip(more, base, strict=True)) / self.loads)
        return found

    def plain(self) -> float:
        """What was really run, over what the first subject ran in the same rounds."""
        sums = [[sum(map(sum, r)) for r in pair] for pair in self.rounds]
        return statistics.median(own / theirs for theirs, own in sums)

    def _sum(self, seconds: Sequence[float]) -> float:
        return sum(w * t for w, t in zip(self.weights, seconds, strict=True))
