"""Batches of fixed length from shards: documents one after another, with boundaries, in a seeded order.

Rows are windows over all documents in a row, so no token is lost and no padding is needed. Which window comes at which
step is computed, not stored: a run resumes at any step, and memory does not grow with the corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..frontends.task import LABELS
from ..frontends.tokenizer import Tokenizer
from ..passes.document_mask import DOCUMENTS
from .batch import IGNORED, Batch, check_tokenizer, token_inputs
from .errors import DataError
from .shards import Shards

_ROUNDS = 6


def rows(shards: Shards, length: int) -> int:
    """How many rows of `length` tokens a pass over the shards has. Raises DataError if not one."""
    if length < 1:
        raise DataError(f"the length of a row is {length}, expected at least 1")
    count = (shards.tokens - _shift_range(shards, length) + 1) // length
    if count < 1:
        raise DataError(f"the {shards.split} shards hold {shards.tokens} tokens, fewer than a row of {length}")
    return count


def batches(
    shards: Shards, batch: int, length: int, seed: int = 0, start: int = 0, *, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Endless batches of `batch` rows of `length` tokens, from step `start` on; each i64[B,S].

    input_ids; labels: the following token of the same document, -100 at the end of a document; position_ids: from 0
    at the start of each document and of each row; document_ids: 0, 1, ... within a row, for masks; attention_mask:
    1 everywhere. Every pass takes the rows in another order and cuts them elsewhere. rank of world: the rows of each
    step are dealt to `world` processes.
    """
    if not 0 <= rank < world:
        raise DataError(f"rank is {rank}, expected 0 to {world - 1}")
    count = rows(shards, length)
    step = start
    while True:
        first = (step * world + rank) * batch
        places = [_place(shards, count, length, seed, i) for i in range(first, first + batch)]
        yield _stack([_row(shards, place, length) for place in places])
        step += 1


def all_batches(shards: Shards, batch: int, length: int) -> Iterator[Batch]:
    """Every token once, in order; the last row is padded: attention_mask 0, document -1, label -100."""
    count = -(-shards.tokens // length)
    for i in range(0, count, batch):
        yield _stack([_row(shards, r * length, length) for r in range(i, min(i + batch, count))])


@dataclass(frozen=True)
class Dataset:
    """What data preparation made, in the form that the training loop reads: both splits and their tokenizer."""

    tokenizer: Tokenizer
    train: Shards
    held_out: Shards
    documents: bool = True
    task: ClassVar[str] = "causal-lm"
    static: ClassVar[bool] = True

    @staticmethod
    def open(folder: str | Path, tokenizer: Tokenizer | None = None, *, documents: bool = True) -> Dataset:
        """A run of data preparation, or its `shards` folder. documents: a token sees its own document only.

        tokenizer: that of the model, if it has one. Raises ConfigError if the shards were made with another one, and
        ShardError or DataError naming the file.
        """
        train, held_out = Shards(folder, "train"), Shards(folder, "held_out")
        own = Tokenizer.open(train.folder / "tokenizer")
        check_tokenizer(tokenizer, own, str(folder))
        for shards in (train, held_out):
            shards.verify_once()
        return Dataset(own, train, held_out, documents)

    @property
    def vocab(self) -> int:
        return self.tokenizer.size

    def windows(self, length: int, split: str = "train") -> int:
        return rows(self.train if split == "train" else self.held_out, length)

    def batches(self, batch: int, length: int, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        return batches(self.train, batch, length, seed, start)

    def held_out_batches(self, batch: int, length: int) -> Iterator[Batch]:
        if not len(self.held_out):
            raise DataError("no document is held out", hint="raise split.held_out")
        return all_batches(self.held_out, batch, length)


def _stack(found: list[Batch]) -> Batch:
    return {name: np.stack([row[name] for row in found]) for name in found[0]}


def _row(shards: Shards, start: int, length: int) -> Batch:
    ids, numbers = shards.window(start, start + length + 1)
    here = min(length, max(min(start + length, shards.tokens) - start, 0))
    labels = np.full(length, IGNORED, np.int64)
    same = numbers[1:] == numbers[:-1]
    labels[: len(same)] = np.where(same, ids[1:], IGNORED)
    inputs, documents, positions = np.zeros(length, np.int64), np.full(length, -1), np.zeros(length, np.int64)
    inputs[:here] = ids[:here]
    documents[:here] = np.cumsum(np.concatenate([[False], ~same]))[:here]
    begins = np.flatnonzero(np.concatenate([[True], np.diff(documents) != 0]))
    positions[:] = np.arange(length) - np.repeat(begins, np.diff(begins, append=length))
    mask = (documents >= 0).astype(np.int64)
    return {
        **token_inputs(inputs, mask, positions),
        LABELS: labels,
        DOCUMENTS: documents.astype(np.int64),
    }


def _shift_range(shards: Shards, length: int) -> int:
    """In how many places the first row may begin; one if there is no row to spare."""
    return length if shards.tokens >= 2 * length else 1


def _place(shards: Shards, count: int, length: int, seed: int, number: int) -> int:
    """Where row `number` of an endless sequence of passes begins."""
    turn = number // count
    shift = _mix(seed, turn, 0) % _shift_range(shards, length)
    return shift + length * permuted(number % count, count, _mix(seed, turn, 1))


def permuted(i: int, n: int, key: int) -> int:
    """Where a seeded permutation of range(n) sends i: a Feistel network, walked until it falls below n.

    Takes no memory, unlike a shuffled list (Black & Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = i >> half, i & mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mix(key, turn, right) & mask)
        i = left << half | right
        if i < n:
            return i


def _mix(*numbers: int) -> int:
    data = b"".join(n.to_bytes(16, "little", signed=True) for n in numbers)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
