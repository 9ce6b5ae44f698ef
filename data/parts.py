"""Cleaned documents on disk: texts as parquet, and beside them the small tables that the search for duplicates reads.

A document's number is its place in the input: all documents of piece 0, then of piece 1, and so on. Whatever decides
between documents decides by this number or by content, so results do not depend on who worked when.
Bytes on disk for each document besides its text: 36 for exact duplicates; for near-duplicates 4 for each permutation
and 12 for each band.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import unreadable
from ..ir.tensors import Array
from .clean import Cleaner, Counts
from .errors import DataError, need
from .files import read_json, whole_folder, write_json
from .minhash import Signer
from .passages import passage_key
from .readers import Seen, Span, documents
from .recipe import Recipe

KEY = np.dtype("S16")
_DOCUMENTS, _CHARACTERS = 20_000, 1 << 25
"""A part is closed at so many documents or characters; this bounds what a worker holds."""
_GROUP = 1 << 22
_OPEN = 64


def clean_piece(recipe: Recipe, spans: list[Span], target: Path) -> dict[str, Any]:
    """Read and clean one piece into the folder `target`; gives its counts, also written as result.json."""
    seen, counts = Seen.new(), Counts()
    cleaner = Cleaner(recipe.clean)
    signer = Signer(recipe.duplicates) if recipe.duplicates.near != "off" else None
    parts: list[dict[str, int]] = []
    with whole_folder(target) as folder:
        part = _Part(folder, 0, signer)
        for text in documents(spans, recipe.input, seen):
            counts.characters["read"] += len(text)
            page = cleaner(text, counts)
            if page is None:
                continue
            part.add(page.text)
            if part.full:
                parts.append(part.close())
                part = _Part(folder, len(parts), signer)
        if part.documents:
            parts.append(part.close())
        else:
            part.discard()
        result = {
            "parts": parts,
            "digest": seen.digest.hexdigest(),
            "read": dict(seen.counts),
            "damaged": seen.places,
            "cleaned": counts.to_dict(),
        }
        write_json(folder / "result.json", result)
    return result


class _Part:
    """A part while it is written."""

    def __init__(self, folder: Path, number: int, signer: Signer | None) -> None:
        self.pa = need("pyarrow", "pyarrow", "data", "data preparation")
        parquet = need("pyarrow.parquet", "pyarrow", "data", "data preparation")
        self.stem, self.signer = folder / f"{number:04d}", signer
        self.schema = self.pa.schema([("text", self.pa.large_string())])
        self.writer = parquet.ParquetWriter(f"{self.stem}.parquet", self.schema, compression="zstd")
        self.texts: list[str] = []
        self.waiting = self.documents = self.characters = 0
        self.keys: list[bytes] = []
        self.signatures: list[Array] = []

    @property
    def full(self) -> bool:
        return self.documents >= _DOCUMENTS or self.characters >= _CHARACTERS

    def add(self, text: str) -> None:
        self.texts.append(text)
        self.keys.append(passage_key(text))
        if self.signer is not None:
            self.signatures.append(self.signer(text))
        self.documents += 1
        self.characters += len(text)
        self.waiting += len(text)
        if self.waiting >= _GROUP:
            self._flush()

    def close(self) -> dict[str, int]:
        self._flush()
        self.writer.close()
        keys = np.frombuffer(b"".join(self.keys), KEY)
        order = np.argsort(keys, kind="stable").astype(np.uint32)
        self._save("keys", keys)
        self._save("sorted", keys[order])
        self._save("order", order)
        if self.signer is not None:
            self._save_bands(np.stack(self.signatures))
        return {"documents": self.documents, "characters": self.characters}

    def discard(self) -> None:
        self.writer.close()
        Path(f"{self.stem}.parquet").unlink()

    def _save_bands(self, signatures: Array) -> None:
        assert self.signer is not None
        bands = self.signer.keys(signatures)
        rows = np.argsort(bands, axis=1, kind="stable").astype(np.uint32)
        self._save("signatures", signatures)
        self._save("bands", np.take_along_axis(bands, rows.astype(np.int64), axis=1))
        self._save("rows", rows)

    def _flush(self) -> None:
        if self.texts:
            self.writer.write_table(self.pa.table([self.pa.array(self.texts, self.pa.large_string())], self.schema))
        self.texts, self.waiting = [], 0

    def _save(self, name: str, values: Array) -> None:
        np.save(f"{self.stem}.{name}.npy", values)


class Parts:
    """All parts of a run. base[i] is the number of the first document of part i; the last entry is their count."""

    def __init__(self, run: Path, counts: list[tuple[int, int, int]]) -> None:
        self.stems = [run / "clean" / f"{piece:06d}" / f"{part:04d}" for piece, part, _ in counts]
        self.base = np.cumsum([0, *(n for _, _, n in counts)], dtype=np.int64)
        self._open = lru_cache(_OPEN)(self._map)

    @staticmethod
    def of(run: Path) -> Parts:
        return Parts(run, [tuple(entry) for entry in read_json(run / "parts.json")])

    def __len__(self) -> int:
        return len(self.stems)

    @property
    def documents(self) -> int:
        return int(self.base[-1])

    def table(self, part: int, name: str) -> Array:
        """keys S16[n], sorted S16[n], order u32[n], signatures u32[n,P], bands u64[b,n], rows u32[b,n]: mapped."""
        return self._open(part, name)

    def texts(self, part: int) -> Iterator[str]:
        """The texts of a part in order, a few at a time."""
        parquet = need("pyarrow.parquet", "pyarrow", "data", "data preparation")
        path = f"{self.stems[part]}.parquet"
        try:
            with parquet.ParquetFile(path) as file:
                for rows in file.iter_batches(256):
                    yield from rows.column(0).to_pylist()
        except (OSError, ValueError) as e:
            raise DataError(unreadable(e), place=path) from None

    def lookup(self, ids: Array, name: str) -> Array:
        """Rows of a table for documents by number, in the order of `ids`."""
        order = np.argsort(ids, kind="stable")
        parts = np.searchsorted(self.base, ids[order], side="right") - 1
        pieces: list[Array] = []
        for part, group in itertools.groupby(range(len(order)), key=lambda i: int(parts[i])):
            at = np.fromiter(group, np.int64)
            pieces.append(self.table(part, name)[ids[order[at]] - self.base[part]])
        found = np.concatenate(pieces)
        result = np.empty_like(found)
        result[order] = found
        return result

    def excerpts(self, ids: list[int], size: int) -> dict[int, str]:
        """The beginnings of a few documents."""
        found: dict[int, str] = {}
        for part, group in itertools.groupby(sorted(set(ids)), key=self._part_of):
            rows = {int(i - self.base[part]): i for i in group}
            for row, text in enumerate(itertools.islice(self.texts(part), max(rows) + 1)):
                if row in rows:
                    found[rows[row]] = text[:size]
        return found

    def _part_of(self, number: int) -> int:
        return int(np.searchsorted(self.base, number, "right")) - 1

    def _map(self, part: int, name: str) -> Array:
        path = f"{self.stems[part]}.{name}.npy"
        try:
            return np.load(path, mmap_mode="r")
        except (OSError, ValueError) as e:
            raise DataError(unreadable(e), place=path) from None
