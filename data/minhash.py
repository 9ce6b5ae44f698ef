"""MinHash signatures and their bands, by the library datasketch (Broder 1997; Leskovec et al., "Mining of Massive
Datasets", section 3.4). Signatures depend on the text and the recipe only, so every worker computes the same.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

import numpy as np

from ..ir.tensors import Array
from .errors import need
from .recipe import Duplicates

_WORD = re.compile(r"\w+")
_MIX = np.uint64(0x9E3779B97F4A7C15)
_AT_ONCE = 4096
"""Shingles hashed at a time, so that a long document needs no more memory than a short one."""


class Signer:
    """Signatures of documents: u32[permutations] each, and the keys of their bands: u64[bands]."""

    def __init__(self, settings: Duplicates) -> None:
        self.settings = settings
        self.library = need("datasketch", "datasketch", "data", "finding near-duplicates")
        self.bands, self.rows = bands(settings)
        self.start = self._minhash()
        odd = np.random.default_rng(settings.seed).integers(1, 1 << 63, self.rows, dtype=np.uint64)
        self.multipliers = odd * np.uint64(2) + np.uint64(1)

    def __call__(self, text: str) -> Array:
        """The signature of a text, u32[permutations]: of its words in lower case, punctuation aside."""
        hashes = shingles(_WORD.findall(text.lower()), self.settings.shingle)
        sketch = self._minhash(self.start.permutations)
        for i in range(0, len(hashes), _AT_ONCE):
            sketch.update_batch(hashes[i : i + _AT_ONCE].tolist())
        return sketch.hashvalues

    def keys(self, signatures: Array) -> Array:
        """Band keys u64[bands, n] of signatures u32[n, permutations]: equal rows of a band, equal keys."""
        n = len(signatures)
        rows = signatures[:, : self.bands * self.rows].reshape(n, self.bands, self.rows).astype(np.uint64)
        keys = np.zeros((n, self.bands), np.uint64)
        for i in range(self.rows):
            keys = (keys ^ (keys >> np.uint64(29)) ^ rows[:, :, i]) * self.multipliers[i]
        return np.ascontiguousarray((keys ^ (keys >> np.uint64(32))).T)

    def _minhash(self, permutations: Any = None) -> Any:
        known = {} if permutations is None else {"permutations": permutations}
        s = self.settings
        return self.library.MinHash(s.permutations, seed=s.seed, hashfunc=_same, scheme="affine32", **known)


def bands(settings: Duplicates) -> tuple[int, int]:
    """(bands, rows of a band) that miss little above the threshold: candidates are checked, misses are not seen."""
    library = need("datasketch", "datasketch", "data", "finding near-duplicates")
    if settings.threshold >= 1.0:
        return 1, settings.permutations
    lsh = library.MinHashLSH(related(settings), settings.permutations, weights=(0.05, 0.95))
    return int(lsh.b), int(lsh.r)


def related(settings: Duplicates) -> float:
    """The estimated similarity from which documents must not stand on different sides of the split.

    An estimate from n permutations has a standard deviation of sqrt(t (1 - t) / n). Three of them below the threshold,
    less than one in a thousand pairs that truly reach the threshold is missed.
    """
    t = settings.threshold
    return max(t - 3 * (t * (1 - t) / settings.permutations) ** 0.5, 0.05)


def shingles(words: list[str], size: int) -> Array:
    """32-bit hashes of the different runs of `size` words, u32[n]; all words are one run if there are fewer."""
    known: dict[str, int] = {}
    numbers = np.array([known.get(w) or known.setdefault(w, zlib.crc32(w.encode())) for w in words], np.uint64)
    n = min(size, len(numbers))
    if n == 0:
        return np.zeros(0, np.uint32)
    count = len(numbers) - n + 1
    mixed = np.zeros(count, np.uint64)
    for i in range(n):
        mixed = (mixed ^ (mixed >> np.uint64(29)) ^ numbers[i : i + count]) * _MIX
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def _same(value: int) -> int:
    return value
