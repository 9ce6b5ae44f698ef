"""Sequence classification: texts with labels, as padded rows of like length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..data.batch import Batch, token_inputs
from ..data.errors import CorpusError
from ..data.tokenizers import train as train_tokenizer
from ..frontends.task import LABELS, TOKEN_TYPES
from ..frontends.tokenizer import Tokenizer
from ..ir.display import Shown, Table, wrapped
from ..ir.errors import did_you_mean
from ..ir.tensors import Array
from .ragged import Ragged, check_share, counted, encode_all, endless, once, padded, placed, plain, read_fields

Row = tuple[str, str]
"""Label and text."""


@dataclass(frozen=True)
class EncodedTexts:
    """Encoded texts, with the special tokens around them, and the number of the label of each, i64."""

    texts: Ragged
    labels: Array

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, repr=False)
class Labelled(Shown):
    """Labelled texts in two parts that share no text, as a source of batches for sequence-classification models.

    labels: their names, by number.
    """

    tokenizer: Tokenizer
    train: EncodedTexts
    held_out: EncodedTexts
    labels: tuple[str, ...]
    removed: int = 0
    task: ClassVar[str] = "sequence-classification"
    static: ClassVar[bool] = False

    @staticmethod
    def of(
        rows: Sequence[Row],
        tokenizer: Tokenizer | None = None,
        *,
        kind: str = "wordpiece",
        vocab: int = 2048,
        held_out: float = 0.05,
        labels: Sequence[str] | None = None,
    ) -> Labelled:
        """Make it from (label, text) rows. Of each label the share `held_out` of the texts, by hash, is held out.

        tokenizer: None trains one of `kind` on the training part. labels: all labels, in order (None: those of the
        rows, sorted). Raises CorpusError for a label that is not among them, or if there are fewer than two.
        """
        whole = [(label, text) for label, text in rows if label and text]
        names = labels_of(whole) if labels is None else tuple(labels)
        number = {name: i for i, name in enumerate(names)}
        for label, _ in whole:
            if label not in number:
                raise CorpusError(f"no label is called {label!r}{did_you_mean(label, names)}")
        if len(names) < 2:
            raise CorpusError(f"{len(whole)} rows have the labels {', '.join(names) or 'none'}, expected two or more")
        kept = hold_out(whole, held_out)
        parts = [[r for r in whole if (plain(r[1]) in kept) == side] for side in (False, True)]
        if tokenizer is None:
            tokenizer = train_tokenizer(kind, (text for _, text in parts[0]), vocab, "masked-lm")
        train, rest = (
            EncodedTexts(
                Ragged.of(encode_all(tokenizer, [text for _, text in p], add_special=True), tokenizer.size),
                np.array([number[label] for label, _ in p], np.int64),
            )
            for p in parts
        )
        return Labelled(tokenizer, train, rest, names, len(rows) - len(whole))

    @staticmethod
    def read(paths: str | Path | Sequence[str | Path], tokenizer: Tokenizer | None = None, **settings: Any) -> Labelled:
        """From files: .tsv with lines `label<TAB>text`, .jsonl with {"label": ..., "text": ...}; settings as for `of`.

        Raises CorpusError naming file and line.
        """
        files = [paths] if isinstance(paths, (str, Path)) else paths
        rows = [row for p in files for row in read_fields(p, ("label", "text"), numbers=True)]
        with placed(files):
            return Labelled.of(rows, tokenizer, **settings)

    def table(self) -> Table:
        """How much there is on each side, for `repr` and notebooks."""
        rows = [
            ("vocab", f"{self.vocab:,}"),
            ("training", f"{len(self.train):,} texts"),
            ("held out", f"{len(self.held_out):,} texts"),
            ("labels", wrapped(self.labels)),
        ]
        return Table("labelled texts", rows)

    @property
    def vocab(self) -> int:
        """How many ids the tokenizer has."""
        return self.tokenizer.size

    def sizes(self, length: int) -> dict[str, int]:
        """How many texts there are, and how many are cut at this length."""
        cut = sum(int((p.texts.lengths > length).sum()) for p in (self.train, self.held_out))
        sizes = {"train_texts": len(self.train), "held_out_texts": len(self.held_out), "labels": len(self.labels)}
        return {**sizes, **counted(removed_texts=self.removed, cut_texts=cut)}

    def batches(self, batch: int, length: int, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        """Endless batches of `batch` texts of like length, cut to `length` tokens, from step `start` on.

        input_ids, attention_mask, position_ids, token_type_ids i64 [B,S], padded on the right; labels i64 [B].
        """
        part = self.train
        return endless(self._lengths(part, length), batch, seed, start, lambda i: self._batch(part, i, length))

    def held_out_batches(self, batch: int, length: int) -> Iterator[Batch]:
        """Every held-out text once."""
        part = self.held_out
        return once(self._lengths(part, length), batch, lambda i: self._batch(part, i, length))

    def _lengths(self, part: EncodedTexts, length: int) -> tuple[Array]:
        return (np.minimum(part.texts.lengths, length),)

    def _batch(self, part: EncodedTexts, rows: Array, length: int) -> Batch:
        tail = self.tokenizer.tail
        if length <= tail + 1:
            raise CorpusError(f"length is {length}, which leaves no room for a text beside its special tokens")
        texts = [truncated(part.texts[i], length, tail) for i in rows]
        ids, mask, positions = padded(texts, self.tokenizer.pad_id or 0)
        return {
            **token_inputs(ids, mask, positions),
            TOKEN_TYPES: np.zeros_like(ids),
            LABELS: part.labels[rows],
        }


def truncated(ids: Array, length: int, tail: int) -> Array:
    """At most `length` ids; a text that is too long loses its end, but not the `tail` special tokens after it."""
    if len(ids) <= length:
        return ids
    return np.concatenate([ids[: length - tail], ids[len(ids) - tail :]])


def labels_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The labels of rows: numbers in their order, anything else by the alphabet."""
    found = {label for label, _ in rows}
    whole = all(label.isdecimal() for label in found)
    return tuple(sorted(found, key=_by_number if whole else None))


def _by_number(name: str) -> tuple[int, str]:
    return int(name), name


def hold_out(rows: Sequence[Row], share: float) -> set[str]:
    """The texts (white space aside) that are held out: of each label the share with the lowest digests but not all, and
    at least one text in all. A text with several labels goes by its first. Raises CorpusError if none can be spared.
    """
    check_share(share)
    of: dict[str, str] = {}
    for label, text in rows:
        of.setdefault(plain(text), label)
    by_label: dict[str, list[str]] = {}
    for text in sorted(of, key=lambda t: hashlib.sha256(t.encode("utf-8", "surrogatepass")).digest()):
        by_label.setdefault(of[text], []).append(text)
    kept = {text for texts in by_label.values() for text in texts[: min(round(share * len(texts)), len(texts) - 1)]}
    if share and not kept:
        kept = set(max(by_label.values(), key=len)[:-1][:1])
    if share and not kept:
        raise CorpusError(f"{len(of)} texts are too few to train on and to hold out {share:.0%}")
    return kept
