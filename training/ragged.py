"""Rows of different lengths: read from files, held as one array, batched with rows of like length, padded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..data.errors import CorpusError
from ..data.tables import is_table
from ..frontends.tokenizer import Tokenizer
from ..ir.tensors import Array
from .corpus import placed as placed
from .corpus import read_text

T = TypeVar("T")
WINDOW = 100
"""Batches that are shuffled together before their rows are sorted by length."""
_PORTION = 10_000


@dataclass(frozen=True)
class Ragged:
    """Rows of token ids one after another: row i is ids[offsets[i]:offsets[i + 1]]."""

    ids: Array
    offsets: Array

    @staticmethod
    def of(rows: Iterable[Sequence[int]], vocab: int) -> Ragged:
        """Rows in the narrowest type for ids below `vocab`."""
        parts = [np.asarray(r, np.uint16 if vocab <= 1 << 16 else np.uint32) for r in rows]
        offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        return Ragged(np.concatenate(parts) if parts else np.zeros(0, np.uint16), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Array:
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    @property
    def lengths(self) -> Array:
        return np.diff(self.offsets)


def encode_all(tokenizer: Tokenizer, texts: Sequence[str], *, add_special: bool) -> Iterator[list[int]]:
    """Ids of each text; the name of a special token written in a text is read letter by letter."""
    for i in range(0, len(texts), _PORTION):
        for found in tokenizer.literal.encode_batch_fast(texts[i : i + _PORTION], add_special_tokens=add_special):
            yield found.ids


def read_fields(path: str | Path, names: tuple[str, str], *, numbers: bool = False) -> list[tuple[str, str]]:
    """Two texts a row: the columns of a .tsv file in the order of `names`, or members of these names in .jsonl.

    Blank lines are skipped. numbers: members may be whole numbers. Raises CorpusError naming file and line.
    """
    kind = Path(path).suffix
    if kind not in (".tsv", ".jsonl"):
        raise CorpusError("is neither a .tsv nor a .jsonl file", place=str(path))
    found: list[tuple[str, str]] = []
    # Only \n ends a line: splitlines would also cut at characters that a text may hold.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            place = f"{path}:{number}"
            found.append(_columns(line, names, place) if kind == ".tsv" else _members(line, names, place, numbers))
    if not found:
        raise CorpusError("has no rows", place=str(path))
    return found


def _columns(line: str, names: tuple[str, str], place: str) -> tuple[str, str]:
    parts = line.rstrip("\r").split("\t")
    if len(parts) != 2:
        raise CorpusError(f"has {len(parts)} columns, expected 2: {names[0]}, a tab, {names[1]}", place=place)
    return parts[0].strip(), parts[1].strip()


def _members(line: str, keys: tuple[str, str], place: str, numbers: bool) -> tuple[str, str]:
    row = parse(line, place)
    values: list[Any] = [row.get(k) if is_table(row) else None for k in keys]
    kinds = (str, int) if numbers else (str,)
    if not all(type(v) in kinds for v in values):
        raise CorpusError(f"is not an object whose {keys[0]} and {keys[1]} are texts", place=place)
    return str(values[0]).strip(), str(values[1]).strip()


def parse(line: str, place: str) -> Any:
    """The value of a line of JSON. Raises CorpusError, also for half of a character, which no UTF-8 text holds."""
    try:
        found = json.loads(line)
        if "\\u" in line:
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as e:
        raise CorpusError(f"is not JSON: {e}", place=place) from None
    return found


def check_share(held_out: float) -> None:
    if not 0 <= held_out < 1:
        raise CorpusError(f"the held-out share is {held_out}, expected at least 0 and less than 1")


def plain(text: str) -> str:
    """What makes two texts the same: their words."""
    return " ".join(text.split())


def order(lengths: tuple[Array, ...], batch: int, seed: int, turn: int) -> Array:
    """Which rows are in which batch of pass `turn`: row numbers i64 [batches, batch].

    Rows are shuffled, cut into windows of `WINDOW` batches, sorted by length within each, cut into batches, and the
    batches shuffled. Rows that fill no batch are left to another pass; too few rows for one batch are taken again.
    """
    rng = np.random.default_rng([seed, turn])
    count = max(len(lengths[0]) // batch, 1)
    rows = np.resize(rng.permutation(len(lengths[0])), count * batch)
    size = WINDOW * batch
    for at in range(0, len(rows), size):
        window = rows[at : at + size]
        rows[at : at + size] = window[by_length(tuple(k[window] for k in lengths))]
    return rows.reshape(count, batch)[rng.permutation(count)]


def by_length(lengths: tuple[Array, ...]) -> Array:
    """Row numbers, rows whose longest part is short first: measured, that pads least where parts differ in length."""
    return np.lexsort([*reversed(lengths), np.maximum.reduce(lengths)])


def endless(lengths: tuple[Array, ...], batch: int, seed: int, start: int, make: Callable[[Array], T]) -> Iterator[T]:
    """`make` of the rows of each step from `start` on; which they are depends on the seed and the step only.

    lengths: of every row, i64 [rows]; several of them for rows with several parts.
    """
    per_pass = max(len(lengths[0]) // batch, 1)

    @lru_cache(maxsize=1)
    def order_of(turn: int) -> Array:
        return order(lengths, batch, seed, turn)

    step = start
    while True:
        yield make(order_of(step // per_pass)[step % per_pass])
        step += 1


def once(lengths: tuple[Array, ...], batch: int, make: Callable[[Array], T]) -> Iterator[T]:
    """`make` of every row once, shorter ones first."""
    rows = by_length(lengths)
    for i in range(0, len(rows), batch):
        yield make(rows[i : i + batch])


def padded(rows: Sequence[Array], fill: int) -> tuple[Array, Array, Array]:
    """(ids, mask, positions), each i64 [B,S], padded on the right to the longest row."""
    lengths = np.array([len(r) for r in rows])
    longest = int(lengths.max())
    positions: Array = np.ascontiguousarray(np.broadcast_to(np.arange(longest), (len(rows), longest)))
    mask: Array = positions < lengths[:, None]
    ids = np.full(mask.shape, fill, np.int64)
    ids[mask] = np.concatenate(rows)
    return ids, mask.astype(np.int64), positions


def counted(**numbers: Any) -> dict[str, int]:
    """Sizes to show; numbers of things that did not happen are left out."""
    return {k: int(v) for k, v in numbers.items() if v}
