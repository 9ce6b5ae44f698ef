"""Which rewrites make a model wrong: the first guilty one is found by halving, left out, and so on until none is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

PLACES = 6
"""Places of one kind of rewrite that are left out one by one; then all of that kind are."""


@dataclass(frozen=True)
class Undone:
    """A rewrite that was left out: a kind of it, or a place. reason: what was wrong with it in."""

    rewrite: str
    reason: str

    def __str__(self) -> str:
        return f"undone: {self.rewrite}: {self.reason}"


Wrong = Callable[[Collection[str]], str]
"""What is wrong with what is made without some rewrites; "" if nothing is."""


def right_without(
    wrong: Wrong, switches: Sequence[str], places: Callable[[], Sequence[str]]
) -> tuple[list[Undone], str]:
    """Leave out as few rewrites as make the result right: (those left out, what is still wrong with none at all).

    switches: kinds of rewrites in the order in which they are made. places: at which single ones were made, in the last
    result. The last call of `wrong` made what is right.
    """
    off: list[str] = []
    undone: list[Undone] = []
    reason = wrong(off)
    if not reason:
        return undone, ""
    bare = wrong(switches)
    if bare:
        return [], bare
    singles = 0
    while reason:
        kind = _guilty(wrong, [s for s in switches if s not in off], off)
        place = ""
        if singles < PLACES:
            early = [*off, *switches[switches.index(kind) + 1 :]]
            wrong(early)
            place = _place(wrong, places(), early)
            singles += bool(place)
        off.append(place or kind)
        undone.append(Undone(f"{kind} at {place}" if place else kind, reason))
        reason = wrong(off)
    return undone, ""


def _guilty(wrong: Wrong, switches: Sequence[str], off: Sequence[str]) -> str:
    """The first kind with which the result becomes wrong, all later ones being left out."""
    least, most = 0, len(switches)  # right with `least` kinds, wrong with `most`
    while most - least > 1:
        middle = (least + most) // 2
        if wrong([*off, *switches[middle:]]):
            most = middle
        else:
            least = middle
    return switches[most - 1]


def _place(wrong: Wrong, places: Sequence[str], off: Sequence[str]) -> str:
    """The first place with which the result becomes wrong; "" if places do not decide it."""
    own = list(dict.fromkeys(p for p in places if p not in off))
    if not own or wrong([*off, *own]):
        return ""
    least, most = 0, len(own)
    while most - least > 1:
        middle = (least + most) // 2
        if wrong([*off, *own[middle:]]):
            most = middle
        else:
            least = middle
    return own[most - 1]
