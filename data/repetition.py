"""How much of a text repeats itself: lines, paragraphs and word n-grams (Rae et al. 2021, table A1).

The paper leaves open whether the first occurrence counts as repeated. Here it does not: a share is what would
disappear if every line, paragraph or n-gram were kept once. Only "the most frequent n-gram" counts all occurrences.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ..ir.tensors import Array

_BLANK = re.compile(r"\n\s*\n")
_MIX = np.uint64(0x9E3779B97F4A7C15)


def paragraphs(text: str) -> list[str]:
    return [p for p in _BLANK.split(text) if p.strip()]


def share(pieces: Sequence[str], by_length: bool) -> float:
    """Share of the pieces (or of their characters) that repeat an earlier piece."""
    seen: set[str] = set()
    repeated = total = 0
    for piece in pieces:
        size = len(piece) if by_length else 1
        total += size
        if piece in seen:
            repeated += size
        seen.add(piece)
    return repeated / total if total else 0.0


class Repeats:
    """Repetition of word n-grams in a text of `words`."""

    def __init__(self, words: Sequence[str]) -> None:
        numbers: dict[str, int] = {}
        self.ids: Array = np.array([numbers.setdefault(w, len(numbers)) for w in words], np.uint64)
        self.lengths: Array = np.array([len(w) for w in words], np.int64)
        self.total = int(self.lengths.sum())
        self._clean_from = 1 << 30

    def top(self, n: int) -> float:
        """Share of the characters in the most frequent n-gram; 0 if no n-gram occurs twice.

        Among equally frequent ones the longest counts.
        """
        if len(self.ids) <= n:
            return 0.0
        _, first, counts = np.unique(self._ngrams(n), return_index=True, return_counts=True)
        most = int(counts.max())
        if most < 2:
            return 0.0
        size = np.convolve(self.lengths, np.ones(n, np.int64), "valid")[first[counts == most]].max()
        return min(1.0, float(most * size) / self.total)

    def duplicated(self, n: int) -> float:
        """Share of the characters in n-grams that occurred before; a character is counted once."""
        if n >= self._clean_from or len(self.ids) <= n:
            return 0.0
        grams = self._ngrams(n)
        _, first = np.unique(grams, return_index=True)
        if len(first) == len(grams):
            self._clean_from = n  # What does not repeat at n words cannot repeat at more.
            return 0.0
        again = np.ones(len(grams), bool)
        again[first] = False
        edges = np.zeros(len(self.ids) + 1, np.int64)
        edges[:-n] += again
        edges[n:] -= again
        return float(self.lengths[np.cumsum(edges[:-1]) > 0].sum()) / self.total

    def _ngrams(self, n: int) -> Array:
        """A 64-bit number for each run of n words: equal runs, equal numbers."""
        count = len(self.ids) - n + 1
        numbers = np.zeros(count, np.uint64)
        for i in range(n):
            numbers = (numbers ^ (numbers >> np.uint64(29))) * _MIX + self.ids[i : i + count]
        return numbers
