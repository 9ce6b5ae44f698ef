"""Rows that become other rows, in an order that loses none; answers after every token of rows of any lengths."""

from __future__ import annotations

import numpy as np

from .memory import Array


def copies(parents: Array) -> list[tuple[int, int]] | None:
    """(row, its parent) for each row that changes, so that no row is written before all others have read it; None
    where rows change places in a circle, which no order of copies does."""
    pending = {row: parent for row, parent in enumerate(parents.tolist()) if row != parent}
    readers = dict.fromkeys(range(len(parents)), 0)
    for parent in pending.values():
        readers[parent] += 1
    ready = [row for row in pending if not readers[row]]
    order: list[tuple[int, int]] = []
    while ready:
        row = ready.pop()
        parent = pending.pop(row)
        order.append((row, parent))
        readers[parent] -= 1
        if parent in pending and not readers[parent]:
            ready.append(parent)
    return None if pending else order


def sources_of(origins: Array) -> Array:
    """The source of each group of rows i64 [G], for sources of rows i64 [B]: groups lie side by side, are alike in
    size, follow one source each, and are as large as can be."""
    ends = np.flatnonzero(np.diff(origins, append=-1))
    size = np.gcd.reduce(np.diff(ends, prepend=-1))
    return origins[::size]


class Answers:
    """What comes after the tokens of rows that are read in pieces: after the last of each row, or after every one."""

    def __init__(self, batch: int, rows: int, *, every: bool) -> None:
        self.shape, self.every, self.start = (batch, rows) if every else (batch,), every, 0
        self.found: Array = np.zeros((*self.shape, 0), np.float32)

    def take(self, rows: Array, answers: Array) -> None:
        """Answers [N,V] or [N,S,V] of some rows to the next piece."""
        if self.found.shape[-1] != answers.shape[-1]:
            self.found = np.zeros((*self.shape, answers.shape[-1]), np.float32)
        if self.every:
            self.found[rows, self.start : self.start + answers.shape[1]] = answers
            self.start += answers.shape[1]
        else:
            self.found[rows] = answers


def filled(answers: Array, rows: int) -> Array:
    """Answers [1,S,V] with zeros behind them, [1,rows,V]."""
    missing = rows - answers.shape[1]
    return np.pad(answers, ((0, 0), (0, missing), (0, 0))) if missing else answers
