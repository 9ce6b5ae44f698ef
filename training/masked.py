"""Masked language modelling: packed rows of text in which some tokens are hidden and must be guessed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from ..data.batch import IGNORED, Batch, check_tokenizer, token_inputs
from ..data.errors import CorpusError
from ..data.passages import portions
from ..data.shards import Shards
from ..data.tokenizers import document_end
from ..data.tokenizers import train as train_tokenizer
from ..frontends.task import LABELS, TOKEN_TYPES
from ..frontends.tokenizer import Tokenizer
from ..ir.display import Shown, Table
from ..ir.errors import ConfigError
from ..ir.tensors import Array
from .corpus import hold_out_texts, placed, read_text

MASKED, RANDOM = 0.8, 0.1
"""Of the chosen tokens: share that becomes the mask token, share that becomes any token. The rest stays."""
_HELD_OUT = 0x6D61736B
"""Seed of the masking of held-out rows, which is the same at every measurement."""


class Stream(Protocol):
    """Documents one after another, each with the token that ends it."""

    def __len__(self) -> int: ...

    def window(self, start: int, stop: int) -> tuple[Array, Array]:
        """(ids, number of the word of each) from `start` to `stop`, i64; a word has all its tokens in a row."""
        ...


@dataclass(frozen=True)
class Encoded:
    """Texts in memory. begins: whether a token is the first of a word."""

    ids: Array
    begins: Array

    def __len__(self) -> int:
        return len(self.ids)

    def window(self, start: int, stop: int) -> tuple[Array, Array]:
        return self.ids[start:stop].astype(np.int64), np.cumsum(self.begins[start:stop])

    @staticmethod
    def of(tokenizer: Tokenizer, texts: Sequence[str]) -> Encoded:
        end = document_end(tokenizer)
        ids: list[Array] = []
        begins: list[Array] = []
        for text in filter(None, texts):
            for part in portions(text):
                found = tokenizer.literal.encode(part, add_special_tokens=False)
                words = np.array(found.word_ids, np.int64)
                ids.append(np.array(found.ids, np.uint32))
                begins.append(np.diff(words, prepend=-1) != 0)
            ids.append(np.array([] if end is None else [end], np.uint32))
            begins.append(np.ones(len(ids[-1]), bool))
        return Encoded(np.concatenate(ids), np.concatenate(begins)) if ids else Encoded(np.zeros(0), np.zeros(0, bool))


@dataclass(frozen=True)
class Sharded:
    """What `monograph data` made; it knows no words, so each token is one."""

    shards: Shards

    def __len__(self) -> int:
        return self.shards.tokens

    def window(self, start: int, stop: int) -> tuple[Array, Array]:
        ids = self.shards.window(start, stop)[0]
        return ids, np.arange(len(ids))


@dataclass(frozen=True, repr=False)
class Masked(Shown):
    """Text in two parts, as a source of batches for masked-lm models. (Devlin et al. 2019)

    share: of the tokens of a row that the model predicts. whole_word: all pieces of a word are chosen or none.
    """

    tokenizer: Tokenizer
    train: Stream
    held_out: Stream
    share: float = 0.15
    whole_word: bool = False
    task: ClassVar[str] = "masked-lm"
    static: ClassVar[bool] = True

    def __post_init__(self) -> None:
        named = {"cls_token": self.tokenizer.cls_id, "sep_token": self.tokenizer.sep_id}
        lost = [k for k, v in {**named, "mask_token": self.tokenizer.mask_id}.items() if v is None]
        if lost:
            raise ConfigError(f"the tokenizer has no {', '.join(lost)}, which masked rows need")

    @staticmethod
    def of(
        texts: Sequence[str],
        tokenizer: Tokenizer | None = None,
        *,
        kind: str = "wordpiece",
        vocab: int = 2048,
        held_out: float = 0.05,
        share: float = 0.15,
        whole_word: bool = False,
    ) -> Masked:
        """From texts, whose ends are held out as `hold_out_texts` does. tokenizer: None trains one of `kind`.

        Raises CorpusError if there is no text, ConfigError for a tokenizer without [CLS], [SEP] and [MASK].
        """
        if not any(t.strip() for t in texts):
            raise CorpusError(f"{len(texts)} texts hold nothing but white space")
        parts = hold_out_texts(texts, held_out)
        if tokenizer is None:
            tokenizer = train_tokenizer(kind, [a for a, _ in parts], vocab, "masked-lm")
        train, kept = (Encoded.of(tokenizer, [pair[side] for pair in parts]) for side in (0, 1))
        return Masked(tokenizer, train, kept, share, whole_word)

    @staticmethod
    def read(paths: Sequence[str | Path], tokenizer: Tokenizer | None = None, **settings: Any) -> Masked:
        """From UTF-8 text files; settings as for `of`. Raises CorpusError naming file and offset."""
        texts = [read_text(p) for p in paths]
        with placed(paths):
            return Masked.of(texts, tokenizer, **settings)

    @staticmethod
    def open(
        folder: str | Path, tokenizer: Tokenizer | None = None, *, share: float = 0.15, whole_word: bool = False
    ) -> Masked:
        """From a run of `monograph data` whose tokenizer was made for masked-lm.

        tokenizer: that of the model, if it has one. Raises ConfigError if the shards were made with another one, and
        ShardError naming the file.
        """
        if whole_word:
            raise ConfigError("shards do not say where words begin: whole words are masked in text files only")
        train, held_out = Shards(folder, "train"), Shards(folder, "held_out")
        own = Tokenizer.open(train.folder / "tokenizer")
        check_tokenizer(tokenizer, own, str(folder))
        for shards in (train, held_out):
            shards.verify_once()
        return Masked(own, Sharded(train), Sharded(held_out), share)

    def table(self) -> Table:
        """How much there is on each side, for `repr` and notebooks."""
        rows = [
            ("vocab", f"{self.vocab:,}"),
            ("training", f"{len(self.train):,} tokens"),
            ("held out", f"{len(self.held_out):,} tokens"),
            ("masked", f"{self.share:.0%} of the tokens"),
        ]
        return Table("masked text", rows)

    @property
    def vocab(self) -> int:
        """How many ids the tokenizer has."""
        return self.tokenizer.size

    def sizes(self, length: int) -> dict[str, int]:
        """How many tokens each part has."""
        return {"train_tokens": len(self.train), "held_out_tokens": len(self.held_out)}

    def batches(self, batch: int, length: int, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        """Endless batches of `batch` rows [CLS] text [SEP] of `length` tokens, from step `start` on; i64 [B,S].

        Each pass cuts the text at another offset and takes the windows in another order. labels: the tokens that were
        chosen, as they were; IGNORED elsewhere. What a step holds depends on the seed and its number only. Raises
        CorpusError if the text is shorter than a row.
        """
        width = self._width(length)
        count = max(len(self.train) // width - 1, 1)  # One is given up so that the cuts can lie elsewhere in each pass.
        if len(self.train) < width:
            raise CorpusError(f"the training part has {len(self.train)} tokens, fewer than the {width} of a row")

        @lru_cache(maxsize=1)
        def order_of(turn: int) -> Array:
            rng = np.random.default_rng([seed, turn])
            return rng.permutation(count) * width + rng.integers(len(self.train) - count * width + 1)

        step = start
        while True:
            places = [order_of(i // count)[i % count] for i in range(step * batch, (step + 1) * batch)]
            rng = np.random.default_rng([seed, step, 1])
            yield _stack([self._row(self.train, int(at), width, rng) for at in places])
            step += 1

    def held_out_batches(self, batch: int, length: int) -> Iterator[Batch]:
        """Every held-out token once, masked the same way every time; the last row is padded."""
        width = self._width(length)
        count = -(-len(self.held_out) // width)
        for first in range(0, count, batch):
            yield _stack(
                [
                    self._row(self.held_out, i * width, width, np.random.default_rng([_HELD_OUT, i]))
                    for i in range(first, min(first + batch, count))
                ]
            )

    def _width(self, length: int) -> int:
        if length < 3:
            raise ConfigError(f"length is {length}, expected at least 3: [CLS], a token, [SEP]")
        return length - 2

    def _row(self, stream: Stream, at: int, width: int, rng: np.random.Generator) -> Batch:
        """One row [S] with its labels; padded on the right where the stream ends."""
        t = self.tokenizer
        assert t.cls_id is not None and t.sep_id is not None
        ids, words = stream.window(at, min(at + width, len(stream)))
        row: Array = np.concatenate([np.array([t.cls_id]), ids, np.array([t.sep_id])]).astype(np.int64)
        words = np.concatenate([[0], words + 1, [0]]) if self.whole_word else np.arange(len(row))
        free = ~np.isin(row, list(t.special_ids))
        chosen = choose(free, words, self.share, rng)
        labels = np.where(chosen, row, IGNORED)
        row = hide(row, chosen, int(t.mask_id or 0), _ordinary(t.size, t.special_ids), rng)
        size, rest = width + 2, width + 2 - len(row)
        ids = np.pad(row, (0, rest), constant_values=t.pad_id or 0)
        return {
            **token_inputs(ids, np.pad(np.ones(len(row), np.int64), (0, rest)), np.arange(size)),
            TOKEN_TYPES: np.zeros(size, np.int64),
            LABELS: np.pad(labels, (0, rest), constant_values=IGNORED),
        }


@lru_cache(maxsize=4)
def _ordinary(size: int, special: frozenset[int]) -> Array:
    """Ids that stand for text."""
    return np.setdiff1d(np.arange(size), list(special))


def choose(free: Array, words: Array, share: float, rng: np.random.Generator) -> Array:
    """Which tokens of a row must be guessed, bool [S]: `share` of the free ones, at least one, word by word.

    free: bool [S], tokens that may be chosen. words: number of the word of each. A word that would be more than the
    share is passed over, unless nothing else is there.
    """
    names, of, sizes = np.unique(words[free], return_inverse=True, return_counts=True)
    left = max(round(share * int(free.sum())), 1)
    taken = np.zeros(len(names), bool)
    order = rng.permutation(len(names))
    for i in order:
        if sizes[i] <= left:
            taken[i] = True
            left -= sizes[i]
        if not left:
            break
    if not taken.any():
        taken[order[:1]] = True
    chosen = np.zeros(len(free), bool)
    chosen[np.flatnonzero(free)] = taken[of]
    return chosen


def hide(row: Array, chosen: Array, mask: int, ordinary: Array, rng: np.random.Generator) -> Array:
    """The row as the model sees it: of the chosen tokens 80 % masked, 10 % any of `ordinary`, 10 % as it is."""
    dice = rng.random(len(row))
    strange = rng.choice(ordinary, len(row))
    row = np.where(chosen & (dice < MASKED), mask, row)
    return np.where(chosen & (dice >= MASKED) & (dice < MASKED + RANDOM), strange, row)


def _stack(rows: list[Batch]) -> Batch:
    return {k: np.stack([r[k] for r in rows]) for k in rows[0]}
