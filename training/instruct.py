"""Instruction data: conversations and prompts from JSONL, as token rows in which only the answers count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

import numpy as np

from ..data.batch import IGNORED, Batch, token_inputs
from ..data.byte_level import encode_plain
from ..data.errors import CorpusError
from ..data.tables import is_list, is_table
from ..frontends.task import LABELS
from ..frontends.tokenizer import Tokenizer
from ..ir.errors import MonographError
from .ragged import parse

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """Token ids of one example, and which of them the model learns to say."""

    ids: tuple[int, ...]
    said: tuple[bool, ...]

    def truncated(self, length: int) -> Row:
        """At most `length` tokens and the one that follows them."""
        return Row(self.ids[: length + 1], self.said[: length + 1])

    @property
    def learns(self) -> bool:
        """Whether any token counts; the first has nothing before it and never does."""
        return any(self.said[1:])


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file. Raises CorpusError naming file and line."""
    rows: list[dict[str, Any]] = []
    try:
        with Path(path).open(encoding="utf-8") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    rows.append(_object(line, f"{path}:{number}"))
    except UnicodeDecodeError as e:
        raise CorpusError(f"is not UTF-8: {e.reason} in a line after {len(rows)} rows", place=str(path)) from None
    except OSError as e:
        raise CorpusError(f"cannot be read: {e.strerror}", place=str(path)) from None
    if not rows:
        raise CorpusError("has no rows", place=str(path))
    return rows


def _object(line: str, place: str) -> dict[str, Any]:
    found = parse(line, place)
    if not is_table(found):
        raise CorpusError(f"is a JSON {type(found).__name__}, not an object", place=place)
    return dict(found)


def is_messages(value: Any) -> TypeGuard[Messages]:
    return is_list(value) and bool(value) and all(is_table(m) and "role" in m for m in value)


def encode_chat(tokenizer: Tokenizer, messages: Messages) -> Row:
    """A conversation by the checkpoint's chat template; what the assistant says counts, with its end of turn.

    An answer is what the template adds to the prompt for it. Raises CorpusError when nothing is said, or when the
    template writes earlier messages differently once later ones follow.
    """
    whole = tokenizer.chat(messages, add_generation_prompt=False)
    spans: list[tuple[int, int]] = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = tokenizer.chat(messages[:i], add_generation_prompt=True)
            until = tokenizer.chat(messages[: i + 1], add_generation_prompt=False)
            if not (until.startswith(prompt) and whole.startswith(until)):
                what = f"the chat template writes messages 1 to {i + 1} of {len(messages)} differently when more follow"
                raise CorpusError(what, hint="split the conversation so that each row ends with its answer")
            spans.append((len(prompt), len(until)))
    if not spans:
        raise CorpusError(f"none of {len(messages)} messages is the assistant's")
    encoding = tokenizer.core.encode(whole, add_special_tokens=False)
    said = tuple(any(a <= start < b for a, b in spans) for start, _ in encoding.offsets)
    return Row(tuple(encoding.ids), said)


def encode_completion(tokenizer: Tokenizer, prompt: str, completion: str) -> Row:
    """Plain text: the completion counts, and the end of text that follows it."""
    before = tokenizer.encode(prompt)
    after = encode_plain(tokenizer, completion) + ([tokenizer.eos_id] if tokenizer.eos_id is not None else [])
    return Row((*before, *after), (False,) * len(before) + (True,) * len(after))


def encode_row(tokenizer: Tokenizer, row: Mapping[str, Any]) -> Row:
    """{"messages": [{"role", "content"}]} or {"prompt": text, "completion": text}. Raises CorpusError for others."""
    messages = row.get("messages")
    if is_messages(messages):
        return encode_chat(tokenizer, messages)
    prompt, completion = row.get("prompt"), row.get("completion")
    if is_messages(prompt) and is_messages(completion):
        return encode_chat(tokenizer, [*prompt, *completion])
    if isinstance(prompt, str) and isinstance(completion, str):
        return encode_completion(tokenizer, prompt, completion)
    raise CorpusError(f"has keys {', '.join(row) or 'none'}; expected messages, or prompt and completion")


def encode_rows(tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any]], encode: Any, place: str = "") -> list[Any]:
    """`encode(tokenizer, row)` for each. Raises CorpusError naming the row."""
    found: list[Any] = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(encode(tokenizer, row))
        except MonographError as e:
            raise CorpusError(e.what, place=f"{place or 'rows'}: row {number}", hint=e.hint) from None
    return found


@dataclass(frozen=True)
class Instructions:
    """Rows in two parts, with the interface of a Corpus: `train(model, data, ...)` takes it in place of one.

    dropped: rows without a token that counts within the length they are cut to; found when batches are made.
    """

    tokenizer: Tokenizer
    rows: tuple[Row, ...]
    held_out_rows: tuple[Row, ...] = ()
    task: ClassVar[str] = "causal-lm"
    static: ClassVar[bool] = False

    @staticmethod
    def of(
        tokenizer: Tokenizer, rows: Sequence[Mapping[str, Any]], *, held_out: float = 0.0, place: str = ""
    ) -> Instructions:
        """From parsed rows (see `encode_row`); the share `held_out` is taken from the end. Raises CorpusError."""
        encoded = encode_rows(tokenizer, rows, encode_row, place)
        return Instructions(tokenizer, *hold_out_rows(encoded, held_out))

    @staticmethod
    def read(tokenizer: Tokenizer, path: str | Path, *, held_out: float = 0.0) -> Instructions:
        """From a JSONL file. Raises CorpusError naming file and line or row."""
        return Instructions.of(tokenizer, read_jsonl(path), held_out=held_out, place=str(path))

    @property
    def vocab(self) -> int:
        return self.tokenizer.size

    @property
    def held_out(self) -> tuple[int, ...]:
        """All held-out tokens."""
        return tuple(i for row in self.held_out_rows for i in row.ids)

    def batches(self, batch: int, length: int, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        """Endless batches of `batch` rows cut to `length` tokens and padded on the right, from step `start` on.

        Each pass takes the rows in another order, by the seed. Raises CorpusError if no row has a token that counts.
        """
        rows = usable(self.rows, length)
        for chosen in shuffled(len(rows), batch, seed, start):
            yield pad([rows[i] for i in chosen])

    def held_out_batches(self, batch: int, length: int) -> Iterator[Batch]:
        rows = usable(self.held_out_rows, length)
        for i in range(0, len(rows), batch):
            yield pad(rows[i : i + batch])


def hold_out_rows(rows: Sequence[Any], held_out: float) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """(training rows, held-out rows): those at the end. Raises CorpusError if a part that is needed would be empty."""
    if not 0 <= held_out < 1:
        raise CorpusError(f"the held-out share is {held_out}, expected at least 0 and less than 1")
    count = max(round(held_out * len(rows)), 1) if held_out else 0
    if count >= len(rows):
        raise CorpusError(f"{len(rows)} rows are too few to train on and to hold out {held_out:.0%}")
    return tuple(rows[: len(rows) - count]), tuple(rows[len(rows) - count :])


def usable(rows: Sequence[Row], length: int) -> list[Row]:
    """Rows cut to `length`, without those of which nothing that counts is left. Raises CorpusError if none is."""
    kept = [short for row in rows if (short := row.truncated(length)).learns]
    if not kept:
        raise CorpusError(f"none of {len(rows)} rows has a token to learn within its first {length}")
    return kept


def shuffled(count: int, batch: int, seed: int, start: int) -> Iterator[list[int]]:
    """Endless batches of row numbers: each pass is a permutation that depends on the seed and its number only."""
    at, number, order = start * batch, -1, np.empty(0, np.int64)
    while True:
        chosen: list[int] = []
        for i in range(at, at + batch):
            if i // count != number:
                number = i // count
                order = np.random.default_rng([seed, number]).permutation(count)
            chosen.append(int(order[i % count]))
        yield chosen
        at += batch


def pad(rows: Sequence[Row]) -> Batch:
    """Inputs and labels i64 [B,S], padded on the right to the longest; a label is the next token, if it counts."""
    length = max(len(r.ids) for r in rows) - 1
    ids, labels, mask = (np.full((len(rows), length), v, np.int64) for v in (0, IGNORED, 0))
    for i, r in enumerate(rows):
        n = len(r.ids) - 1
        ids[i, :n], mask[i, :n] = r.ids[:-1], 1
        labels[i, :n] = np.where(r.said[1:], r.ids[1:], IGNORED)
    positions = np.broadcast_to(np.arange(length, dtype=np.int64), ids.shape)
    return {
        **token_inputs(ids, mask, np.ascontiguousarray(positions)),
        LABELS: labels,
    }
