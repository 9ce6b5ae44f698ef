"""Sequence to sequence: pairs of source and target, one tokenizer for both sides, the target read as it is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..data.batch import IGNORED, Batch, token_inputs
from ..data.errors import CorpusError
from ..data.tokenizers import train as train_tokenizer
from ..frontends.task import LABELS
from ..frontends.tokenizer import Tokenizer
from ..ir.display import Shown, Table
from ..ir.errors import ConfigError
from ..ir.slots import TARGETS
from ..ir.tensors import Array
from .ragged import Ragged, check_share, counted, encode_all, endless, once, padded, placed, plain, read_fields

Pair = tuple[str, str]
"""Source and target."""


@dataclass(frozen=True)
class EncodedPairs:
    """Encoded pairs: sources with the special tokens the tokenizer puts around a text, targets without any."""

    source: Ragged
    target: Ragged

    def __len__(self) -> int:
        return len(self.source)

    @staticmethod
    def of(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> EncodedPairs:
        return EncodedPairs(
            Ragged.of(encode_all(tokenizer, [a for a, _ in pairs], add_special=True), tokenizer.size),
            Ragged.of(encode_all(tokenizer, [b for _, b in pairs], add_special=False), tokenizer.size),
        )

    def fitting(self, length: int) -> Array:
        """Numbers of the pairs of which no side is longer than `length` tokens, the end of the target included."""
        return np.flatnonzero((self.source.lengths <= length) & (self.target.lengths < length))


@dataclass(frozen=True, repr=False)
class Pairs(Shown):
    """Pairs in two parts, as a source of batches for seq2seq-lm models.

    references: the held-out pairs as texts. removed: training pairs dropped because a side of them is held out, or
    empty. start: id that a target begins with.
    """

    tokenizer: Tokenizer
    train: EncodedPairs
    held_out: EncodedPairs
    references: tuple[Pair, ...]
    removed: int
    start: int
    task: ClassVar[str] = "seq2seq-lm"
    static: ClassVar[bool] = False

    @staticmethod
    def of(pairs: Sequence[Pair], tokenizer: Tokenizer | None = None, **settings: Any) -> Pairs:
        """From pairs of texts: one list of `of_lists`, with its settings."""
        return Pairs.of_lists([pairs], tokenizer, **settings)

    @staticmethod
    def read(paths: str | Path | Sequence[str | Path], tokenizer: Tokenizer | None = None, **settings: Any) -> Pairs:
        """From files: .tsv with lines `source<TAB>target`, .jsonl with {"source": ..., "target": ...}.

        Settings as for `of_lists`, of which each file is a list. Raises CorpusError naming file and line.
        """
        files = [paths] if isinstance(paths, (str, Path)) else paths
        found = [read_fields(p, ("source", "target")) for p in files]
        with placed(files):
            return Pairs.of_lists(found, tokenizer, **settings)

    @staticmethod
    def of_lists(
        lists: Sequence[Sequence[Pair]],
        tokenizer: Tokenizer | None = None,
        *,
        kind: str = "byte-bpe",
        vocab: int = 2048,
        held_out: float = 0.05,
        start: int | None = None,
    ) -> Pairs:
        """From lists of pairs; the share `held_out` is taken from the end of each list.

        Training pairs that have the source or the target of a held-out one are removed. tokenizer: None trains one
        of `kind` with `vocab` entries on both sides of what is left. start: None takes the tokenizer's `start_id`.
        Raises CorpusError if nothing is left to train on, ConfigError for a tokenizer without an end of text.
        """
        train, kept, removed = hold_out(lists, held_out)
        if tokenizer is None:
            tokenizer = train_tokenizer(kind, (text for pair in train for text in pair), vocab, "seq2seq")
        first = tokenizer.start_id if start is None else start
        if tokenizer.eos_id is None or first is None:
            raise ConfigError("the tokenizer has no end-of-text token, with which a target must end")
        parts = EncodedPairs.of(tokenizer, train), EncodedPairs.of(tokenizer, kept)
        return Pairs(tokenizer, *parts, tuple(kept), removed, first)

    def table(self) -> Table:
        """How much there is on each side, for `repr` and notebooks."""
        rows = [
            ("vocab", f"{self.vocab:,}"),
            ("training", f"{len(self.train):,} pairs"),
            ("held out", f"{len(self.held_out):,} pairs"),
        ]
        return Table("pairs of texts", rows)

    @property
    def vocab(self) -> int:
        """How many ids the tokenizer has."""
        return self.tokenizer.size

    def sizes(self, length: int) -> dict[str, int]:
        """How many pairs there are, and how many are left out at this length."""
        long = sum(len(p) - len(p.fitting(length)) for p in (self.train, self.held_out))
        return {
            "train_pairs": len(self.train),
            "held_out_pairs": len(self.held_out),
            **counted(removed_pairs=self.removed, too_long_pairs=long),
        }

    def batches(self, batch: int, length: int, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        """Endless batches of `batch` pairs of like length, from step `start` on; longer than `length` are left out.

        input_ids, attention_mask, position_ids i64 [B,S]: sources; decoder_* i64 [B,U]: the start token and targets;
        labels i64 [B,U]: targets and the end-of-text token. All are padded on the right. Raises CorpusError if no
        pair is short enough.
        """
        if len(self.held_out):
            self._chosen(self.held_out, length)  # Known before the first step, not at the first measurement.
        part, chosen = self.train, self._chosen(self.train, length)
        return endless(self._lengths(part, chosen), batch, seed, start, lambda i: self._batch(part, chosen[i]))

    def held_out_batches(self, batch: int, length: int) -> Iterator[Batch]:
        """Every held-out pair that is short enough once."""
        part, chosen = self.held_out, self._chosen(self.held_out, length)
        return once(self._lengths(part, chosen), batch, lambda i: self._batch(part, chosen[i]))

    def _chosen(self, part: EncodedPairs, length: int) -> Array:
        chosen = part.fitting(length)
        if not len(chosen):
            raise CorpusError(f"none of {len(part)} pairs has at most {length} tokens on each side")
        return chosen

    def _lengths(self, part: EncodedPairs, chosen: Array) -> tuple[Array, Array]:
        return part.source.lengths[chosen], part.target.lengths[chosen]

    def _batch(self, part: EncodedPairs, rows: Array) -> Batch:
        end, fill = self.tokenizer.eos_id, self.tokenizer.pad_id or 0
        assert end is not None
        targets = [part.target[i].astype(np.int64) for i in rows]
        source = padded([part.source[i] for i in rows], fill)
        target = padded([np.concatenate([np.array([self.start]), t]) for t in targets], fill)
        labels = padded([np.concatenate([t, np.array([end])]) for t in targets], IGNORED)[0]
        return {
            **token_inputs(*source),
            **token_inputs(*target, TARGETS),
            LABELS: labels,
        }


def hold_out(lists: Sequence[Sequence[Pair]], share: float) -> tuple[list[Pair], list[Pair], int]:
    """(training pairs, held-out pairs, how many were removed). Raises CorpusError if none is left to train on.

    A training pair is removed if its source or its target is that of a held-out pair (white space aside), or if a
    side of it is empty; held-out pairs with an empty side are removed too.
    """
    check_share(share)
    whole = [[(a, b) for a, b in pairs if a and b] for pairs in lists]
    ends = [len(pairs) - (max(round(share * len(pairs)), 1) if share else 0) for pairs in whole]
    kept = [p for pairs, end in zip(whole, ends, strict=True) for p in pairs[max(end, 0) :]]
    seen = [{plain(p[side]) for p in kept} for side in (0, 1)]
    train = [
        p
        for pairs, end in zip(whole, ends, strict=True)
        for p in pairs[: max(end, 0)]
        if plain(p[0]) not in seen[0] and plain(p[1]) not in seen[1]
    ]
    if not train:
        raise CorpusError(f"of {sum(map(len, lists))} pairs none is left to train on, with {len(kept)} held out")
    return train, kept, sum(map(len, lists)) - len(train) - len(kept)
