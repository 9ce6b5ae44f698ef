"""Direct preference optimisation: pairs of answers, their loss against a reference model. (Rafailov et al. 2023)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..data.batch import IGNORED, Batch
from ..data.errors import CorpusError
from ..frontends.tokenizer import Tokenizer
from ..ir.display import Shown, Table
from .instruct import (
    Row,
    encode_chat,
    encode_completion,
    encode_rows,
    hold_out_rows,
    is_messages,
    pad,
    read_jsonl,
    shuffled,
)

Pair = tuple[Row, Row]


def dpo_loss(policy: torch.Tensor, reference: torch.Tensor, beta: float = 0.1) -> torch.Tensor:
    """Mean of -log sigmoid(beta * ((policy - reference) of the chosen - the same of the rejected)).

    policy, reference: log probabilities [2N] of the answers under both models, the N chosen ones first.
    """
    margin = rewards(policy, reference, beta)
    return -torch.nn.functional.logsigmoid(margin).mean()


def rewards(policy: torch.Tensor, reference: torch.Tensor, beta: float) -> torch.Tensor:
    """[N]: by how much the implicit reward beta * (policy - reference) of the chosen answer exceeds the other's."""
    chosen, rejected = (beta * (policy - reference)).chunk(2)
    return chosen - rejected


def log_probabilities(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[B]: the log probability of the labels of each row, in f32. logits [B,S,V], labels i64 [B,S]."""
    wide = logits.float().transpose(1, 2)
    return -torch.nn.functional.cross_entropy(wide, labels, ignore_index=IGNORED, reduction="none").sum(1)


def encode_pair(tokenizer: Tokenizer, row: Mapping[str, Any]) -> Pair:
    """{"prompt", "chosen", "rejected"}, each a text or a list of messages; without a prompt, whole conversations.

    Of conversations only the last answer counts. Raises CorpusError for another shape.
    """
    prompt, good, bad = (row.get(k) for k in ("prompt", "chosen", "rejected"))
    if isinstance(prompt, str) and isinstance(good, str) and isinstance(bad, str):
        return encode_completion(tokenizer, prompt, good), encode_completion(tokenizer, prompt, bad)
    if is_messages(good) and is_messages(bad) and (prompt is None or is_messages(prompt)):
        chosen, rejected = (_last_answer(encode_chat(tokenizer, [*(prompt or []), *a])) for a in (good, bad))
        return chosen, rejected
    raise CorpusError(
        f"has keys {', '.join(row) or 'none'}; expected prompt, chosen and rejected, as texts or messages"
    )


def _last_answer(row: Row) -> Row:
    end = max(i for i, said in enumerate(row.said) if said)
    start = end
    while start and row.said[start - 1]:
        start -= 1
    return Row(row.ids, tuple(start <= i <= end for i in range(len(row.ids))))


@dataclass(frozen=True, repr=False)
class Preferences(Shown):
    """Pairs of answers in two parts, with the interface of a Corpus. The first half of a batch is chosen rows."""

    tokenizer: Tokenizer
    pairs: tuple[Pair, ...]
    held_out_pairs: tuple[Pair, ...] = ()
    task: ClassVar[str] = "causal-lm"
    static: ClassVar[bool] = False

    @staticmethod
    def of(
        tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any]], *, held_out: float = 0.0, place: str = ""
    ) -> Preferences:
        """From parsed rows (see `encode_pair`); the share `held_out` is taken from the end. Raises CorpusError."""
        return Preferences(tokenizer, *hold_out_rows(encode_rows(tokenizer, rows, encode_pair, place), held_out))

    @staticmethod
    def read(tokenizer: Tokenizer, path: str | Path, *, held_out: float = 0.0) -> Preferences:
        """From a JSONL file. Raises CorpusError naming file and line or row."""
        return Preferences.of(tokenizer, read_jsonl(path), held_out=held_out, place=str(path))

    def table(self) -> Table:
        """How much there is on each side, for `repr` and notebooks."""
        parts = {"training": self.pairs, "held out": self.held_out_pairs}
        rows = [("vocab", f"{self.vocab:,}"), *((name, f"{len(part):,} pairs") for name, part in parts.items())]
        return Table("preferences", rows)

    @property
    def vocab(self) -> int:
        """How many ids the tokenizer has."""
        return self.tokenizer.size

    @property
    def held_out(self) -> tuple[int, ...]:
        """All held-out tokens."""
        return tuple(i for pair in self.held_out_pairs for row in pair for i in row.ids)

    def batches(self, batch: int, length: int, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        """Endless batches of `batch` pairs, [2 * batch, S]; see `Instructions.batches`."""
        pairs = _usable(self.pairs, length)
        for chosen in shuffled(len(pairs), batch, seed, start):
            yield _pad([pairs[i] for i in chosen])

    def held_out_batches(self, batch: int, length: int) -> Iterator[Batch]:
        """Every held-out row once, in order."""
        pairs = _usable(self.held_out_pairs, length)
        for i in range(0, len(pairs), batch):
            yield _pad(pairs[i : i + batch])


def _usable(pairs: Sequence[Pair], length: int) -> list[Pair]:
    """Pairs that differ in what counts within `length` tokens, both sides having some. Raises CorpusError if none."""
    short = [(a.truncated(length), b.truncated(length)) for a, b in pairs]
    kept = [(a, b) for a, b in short if a.learns and b.learns and a != b]
    if not kept:
        raise CorpusError(f"none of {len(pairs)} pairs differs within its first {length} tokens")
    return kept


def _pad(pairs: Sequence[Pair]) -> Batch:
    return pad([a for a, _ in pairs] + [b for _, b in pairs])


def accuracy(margins: np.ndarray[Any, Any]) -> float:
    """Share of pairs whose chosen answer has the higher reward."""
    return float((margins > 0).mean())
