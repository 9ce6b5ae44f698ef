"""Instruction data: conversations and prompts from JSONL, as token rows in which only the answers count."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

import numpy as np

from ..data.batch import IGNORED, Batch, token_inputs
from ..data.byte_level import encode_plain
from ..data.errors import CorpusError
from ..data.tables import is_list, is_table
from ..frontends.task import LABELS
from ..frontends.tokenizer import Tokenizer
from ..ir.display import Shown, Table
from ..ir.errors import MonographError, unreadable
from .ragged import parse

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """Token ids of one example, and which of them the model learns to say. note: what a reader should know of it."""

    ids: tuple[int, ...]
    said: tuple[bool, ...]
    note: str = field(default="", compare=False)

    def truncated(self, length: int) -> Row:
        """At most `length` tokens and the one that follows them."""
        return Row(self.ids[: length + 1], self.said[: length + 1], self.note)

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
        raise CorpusError(unreadable(e), place=str(path)) from None
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

    An answer is what the template puts into a generation block; of a template without such blocks, what it adds to the
    prompt for the answer, and the end of text where no end of turn follows. Raises CorpusError when nothing is said or
    a message has no content, or when the template writes earlier messages differently once later ones follow.
    """
    for i, message in enumerate(messages, 1):
        if message.get("content") is None and not message.get("tool_calls"):
            raise CorpusError(f"message {i} of {len(messages)} ({message['role']}) has no content")
    whole, marked = tokenizer.marked_chat(messages, add_generation_prompt=False)
    if not any(m["role"] == "assistant" for m in messages):
        raise CorpusError(f"none of {len(messages)} messages is the assistant's")
    if marked:
        encoding = tokenizer.core.encode(whole, add_special_tokens=False)
        said = tuple(any(start < b and end > a for a, b in marked) for start, end in encoding.offsets)
        return Row(tuple(encoding.ids), said, _missing_end(tokenizer, encoding.ids, said))
    return _with_ends(tokenizer, whole, _answers(tokenizer, messages, whole))


def _answers(tokenizer: Tokenizer, messages: Messages, whole: str) -> list[tuple[int, int]]:
    """(start, end) of each answer in the text of the conversation."""
    found: list[tuple[int, int]] = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = tokenizer.chat(messages[:i], add_generation_prompt=True)
            until = tokenizer.chat(messages[: i + 1], add_generation_prompt=False)
            if not (until.startswith(prompt) and whole.startswith(until)):
                what = f"the chat template writes messages 1 to {i + 1} of {len(messages)} differently when more follow"
                raise CorpusError(what, hint="split the conversation so that each row ends with its answer")
            found.append((len(prompt), len(until)))
    return found


def _with_ends(tokenizer: Tokenizer, whole: str, answers: Sequence[tuple[int, int]]) -> Row:
    """The tokens of a conversation, of which the answers count. Every answer ends in a token that ends generation:
    the template's own, else the one that opens the next turn, else the end of text, which is put there."""
    encoding = tokenizer.core.encode(whole, add_special_tokens=False)
    ids, starts = list(encoding.ids), [start for start, _ in encoding.offsets]
    said, ends, note = [False] * len(ids), frozenset(tokenizer.eos_ids), ""
    for a, b in reversed(answers):
        inside = [i for i, start in enumerate(starts) if a <= start < b]
        after = next((i for i, start in enumerate(starts) if start >= b), len(starts))
        for i in inside:
            said[i] = True
        if any(ids[i] in ends for i in inside):
            continue
        if after < len(ids) and ids[after] in ends:
            said[after] = True
        elif tokenizer.eos_id is not None:
            ids.insert(after, tokenizer.eos_id)
            said.insert(after, True)
            name = tokenizer.core.id_to_token(tokenizer.eos_id)
            note = note or f"no end of turn follows an answer in the chat template: {name} is put after it"
    return Row(tuple(ids), tuple(said), note or _missing_end(tokenizer, ids, said))


def _missing_end(tokenizer: Tokenizer, ids: Sequence[int], said: Sequence[bool]) -> str:
    """A warning if the model would never learn to stop after some answer; else nothing."""
    ends = frozenset(tokenizer.eos_ids)
    spans = _runs(said)
    if all(any(i in ends for i in ids[a:b]) for a, b in spans):
        return ""
    names = ", ".join(tokenizer.core.id_to_token(i) or str(i) for i in sorted(ends)) or "none is known"
    return f"an answer has no token that ends generation ({names}): the model does not learn to stop after it"


def _runs(said: Sequence[bool]) -> list[tuple[int, int]]:
    """(start, end) of each run of tokens that count."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], np.asarray(said, bool), [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def encode_completion(tokenizer: Tokenizer, prompt: str, completion: str) -> Row:
    """Plain text: the completion counts, and the end of text that follows it."""
    framed = tokenizer.encode(prompt)
    before = framed[: len(framed) - tokenizer.tail]  # an end of text does not belong before the completion
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
    """`encode(tokenizer, row)` for each. Warns of the first row with a note. Raises CorpusError naming the row."""
    found: list[Any] = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(encode(tokenizer, row))
        except MonographError as e:
            raise CorpusError(e.what, place=f"{place or 'rows'}: row {number}", hint=e.hint) from None
    notes = {n: r.note for n, row in enumerate(found, 1) for r in _rows_in(row) if r.note}
    if notes:
        first, more = next(iter(notes)), f" (and {len(notes) - 1} more rows)" if len(notes) > 1 else ""
        warnings.warn(f"{place or 'rows'}: row {first}{more}: {notes[first]}", stacklevel=3)
    return found


def _rows_in(row: Any) -> tuple[Row, ...]:
    return (row,) if isinstance(row, Row) else row


@dataclass(frozen=True, repr=False)
class Instructions(Shown):
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

    def table(self) -> Table:
        """How much there is on each side, for `repr` and notebooks."""
        rows = [
            ("vocab", f"{self.vocab:,}"),
            ("training", f"{len(self.rows):,} rows"),
            ("held out", f"{len(self.held_out_rows):,} rows"),
        ]
        return Table("instructions", rows)

    @property
    def vocab(self) -> int:
        """How many ids the tokenizer has."""
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
        """Every held-out row once, in order."""
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
