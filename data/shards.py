"""Shards: token ids on disk, memory-mapped, with document boundaries and a header that is checked on opening.

A shard is three files: NAME.tokens (u16 or u32, little-endian), NAME.offsets (i64, little-endian, one more than there
are documents: document i is tokens[offsets[i]:offsets[i + 1]]) and NAME.json, the header.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ..ir.manifest import stamp_of
from ..ir.tensors import Array
from .errors import DataError, ShardError
from .files import read_json, write_json
from .tables import is_table

FORMAT = "monograph-shard-1"
SIDES: tuple[str, ...] = ("train", "held_out")
KINDS = ("tokens", "offsets")
VERIFIED = ".verified.json"
_FIELDS = {"format": str, "split": str, "documents": int, "tokens": int, "dtype": str, "vocab": int, "tokenizer": str}
_OFFSET = np.dtype("<i8")
_CHECK = 1 << 22


def token_type(vocab: int) -> np.dtype[Any]:
    """The narrowest type for ids below `vocab`: u16 or u32, little-endian."""
    return np.dtype("<u2" if vocab <= 1 << 16 else "<u4")


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}"


class ShardWriter:
    """Writes one shard into a folder that is not visible yet; the header comes last."""

    def __init__(self, folder: Path, name: str, split: str, vocab: int, tokenizer: str) -> None:
        self.folder, self.name, self.type = folder, name, token_type(vocab)
        self.header: dict[str, Any] = {"format": FORMAT, "name": name, "split": split, "documents": 0, "tokens": 0}
        self.header |= {"dtype": self.type.name, "vocab": vocab, "tokenizer": tokenizer}
        self.digests = {kind: hashlib.sha256() for kind in KINDS}

    def __enter__(self) -> Self:
        self.files = {kind: (self.folder / f"{self.name}.{kind}").open("wb") for kind in self.digests}
        self._put("offsets", np.zeros(1, _OFFSET).tobytes())
        self.end = self.written = 0
        return self

    def write(self, data: bytes) -> None:
        """Token ids, as bytes of the shard's type; their documents are told by `lengths` afterwards."""
        self._put("tokens", data)
        self.written += len(data)

    def lengths(self, lengths: Array) -> None:
        """Lengths of the documents written since the last call."""
        offsets = self.end + np.cumsum(lengths, dtype=np.int64)
        self._put("offsets", offsets.astype(_OFFSET).tobytes())
        self.end = int(offsets[-1]) if len(offsets) else self.end
        self.header["documents"] += len(lengths)

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        for file in self.files.values():
            file.close()
        if kind is not None:
            return
        tokens = self.written // self.type.itemsize
        if self.written % self.type.itemsize or tokens != self.end:
            raise ShardError(f"{self.written} bytes were written for {self.end} tokens", place=self.name)
        self.header["tokens"] = tokens
        self.header["sha256"] = {kind: d.hexdigest() for kind, d in self.digests.items()}
        write_json(self.folder / f"{self.name}.json", self.header)

    def _put(self, kind: str, data: bytes) -> None:
        self.files[kind].write(data)
        self.digests[kind].update(data)


class Shard:
    """One shard, opened: `tokens` (memory-mapped) and `offsets` i64[documents + 1] (memory-mapped).

    Raises ShardError with file and numbers for a header that is damaged or does not fit the files.
    """

    def __init__(self, header: Path) -> None:
        self.path, self.header = header, _header(header)
        stem = header.with_suffix("")
        self.type = np.dtype(self.header["dtype"]).newbyteorder("<")
        self.tokens = _map(stem.with_name(f"{stem.name}.tokens"), self.type, self.header["tokens"])
        self.offsets = _map(stem.with_name(f"{stem.name}.offsets"), _OFFSET, self.header["documents"] + 1)
        ends = int(self.offsets[0]), int(self.offsets[-1])
        if ends != (0, self.header["tokens"]):
            place = f"{stem}.offsets"
            raise ShardError(f"runs from {ends[0]} to {ends[1]}, expected 0 to {self.header['tokens']}", place=place)

    def __len__(self) -> int:
        return int(self.header["documents"])

    def document(self, i: int) -> Array:
        a, b = int(self.offsets[i]), int(self.offsets[i + 1])
        if not 0 <= a <= b <= len(self.tokens):
            raise ShardError(f"document {i} runs from {a} to {b} of {len(self.tokens)} tokens", place=str(self.path))
        return self.tokens[a:b]

    def verify(self) -> None:
        """Read everything: digests, order of the offsets, ids below the vocabulary. Raises ShardError."""
        self.verify_digests()
        stem = self.path.with_suffix("")
        for i in range(0, len(self.offsets) - 1, _CHECK):
            if (np.diff(self.offsets[i : i + _CHECK + 1]) < 0).any():
                raise ShardError("has offsets that go back", place=str(stem.with_name(f"{stem.name}.offsets")))
        for i in range(0, len(self.tokens), _CHECK):
            most = int(self.tokens[i : i + _CHECK].max())
            if most >= self.header["vocab"]:
                raise ShardError(
                    f"holds id {most}, but the vocabulary has {self.header['vocab']}", place=str(self.path)
                )

    def verify_digests(self) -> None:
        """Compare both files with their SHA-256 in the header. Raises ShardError."""
        for kind, expected in self.header["sha256"].items():
            file = self._file(kind)
            with file.open("rb") as f:
                found = hashlib.file_digest(f, "sha256").hexdigest()
            if found != expected:
                raise ShardError(f"has SHA-256 {found[:16]}..., expected {expected[:16]}...", place=str(file))

    def state(self) -> list[Any]:
        """Digests and stamps of both files: as long as they are the same, the files hold what they held."""
        return [self.header["sha256"], *(stamp_of(self._file(kind)) for kind in KINDS)]

    def _file(self, kind: str) -> Path:
        stem = self.path.with_suffix("")
        return stem.with_name(f"{stem.name}.{kind}")


class Shards(Sequence[Array]):
    """All documents of one split, in order; token arrays are views into memory-mapped files.

    folder: a run of data preparation, or its `shards` folder. Raises ShardError when a file is missing, truncated or
    does not fit the others.
    """

    def __init__(self, folder: str | Path, split: str = "train") -> None:
        folder = Path(folder)
        self.folder = folder / "shards" if (folder / "shards").is_dir() else folder
        about = read_json(self.folder / "dataset.json")
        if split not in about.get("splits", {}):
            raise ShardError(f"has no split {split!r}: it has {', '.join(about.get('splits', {}))}", place=str(folder))
        expected = about["splits"][split]
        names = [shard_name(split, i) for i in range(expected["shards"])]
        self.split, self.tokenizer, self.vocab = split, str(about["tokenizer"]), int(about["vocab"])
        self.shards = [Shard(self.folder / f"{name}.json") for name in names]
        for shard in self.shards:
            self._check_belongs(shard)
        self.first_document = np.cumsum([0, *map(len, self.shards)], dtype=np.int64)
        self.first_token = np.cumsum([0, *(len(s.tokens) for s in self.shards)], dtype=np.int64)
        found = {"documents": len(self), "tokens": self.tokens}
        wrong = [f"{found[k]} {k}, expected {expected[k]}" for k in found if found[k] != expected[k]]
        if wrong:
            raise ShardError(f"the shards of {split} hold {' and '.join(wrong)}", place=str(self.folder))

    def __len__(self) -> int:
        return int(self.first_document[-1])

    @property
    def tokens(self) -> int:
        """Tokens in all documents together."""
        return int(self.first_token[-1])

    @property
    def digest(self) -> str:
        """SHA-256 of the headers, which hold those of the files."""
        headers = [shard.header for shard in self.shards]
        return hashlib.sha256(json.dumps(headers, sort_keys=True).encode()).hexdigest()

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.document(i) for i in range(*index.indices(len(self)))]
        return self.document(index)

    def document(self, i: int) -> Array:
        """The ids of document i, with the token that ends it. Raises IndexError."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"document {i} of {len(self)}")
        i %= len(self)
        shard = int(np.searchsorted(self.first_document, i, side="right")) - 1
        return self.shards[shard].document(i - int(self.first_document[shard]))

    def window(self, start: int, stop: int) -> tuple[Array, Array]:
        """Tokens `start` to `stop` of all documents in a row: ids and the number of the document of each, i64[n]."""
        ids: list[Array] = []
        numbers: list[Array] = []
        shard = max(int(np.searchsorted(self.first_token, start, side="right")) - 1, 0)
        while start < stop and shard < len(self.shards):
            base, end = int(self.first_token[shard]), int(self.first_token[shard + 1])
            a, b = start - base, min(stop, end) - base
            offsets = self.shards[shard].offsets
            ids.append(self.shards[shard].tokens[a:b].astype(np.int64))
            low = int(np.searchsorted(offsets, a, side="right")) - 1
            high = int(np.searchsorted(offsets, b, side="left"))
            edges = np.clip(offsets[low : high + 1], a, b)
            numbers.append(np.repeat(np.arange(low, high) + self.first_document[shard], np.diff(edges)))
            start, shard = base + b, shard + 1
        if not ids:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return np.concatenate(ids), np.concatenate(numbers)

    def verify(self) -> None:
        """Check every byte against the headers. Raises ShardError."""
        for shard in self.shards:
            shard.verify()

    def verify_once(self) -> None:
        """Compare files with their digests unless that was done since they changed. Raises ShardError.

        What was compared is noted in VERIFIED, if the folder can be written.
        """
        path = self.folder / VERIFIED
        noted: dict[str, Any] = {}
        with contextlib.suppress(DataError):
            found: Any = read_json(path) if path.exists() else None
            noted = dict(found) if is_table(found) else {}
        now = {shard.path.name: json.loads(json.dumps(shard.state())) for shard in self.shards}
        changed = [shard for shard in self.shards if noted.get(shard.path.name) != now[shard.path.name]]
        for shard in changed:
            shard.verify_digests()
        if changed:
            with contextlib.suppress(OSError):
                write_json(path, {**noted, **now})

    def _check_belongs(self, shard: Shard) -> None:
        for key, value in (("split", self.split), ("tokenizer", self.tokenizer), ("vocab", self.vocab)):
            if shard.header[key] != value:
                raise ShardError(f"has {key} {shard.header[key]!r}, expected {value!r}", place=str(shard.path))


def _header(path: Path) -> dict[str, Any]:
    header = read_json(path)
    if not is_table(header) or header.get("format") != FORMAT:
        raise ShardError(f"is not the header of a shard ({FORMAT})", place=str(path))
    for key, kind in _FIELDS.items():
        value = header.get(key)
        if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and int(value) < 0):
            raise ShardError(f"{key} is {value!r}", place=str(path))
    if header["dtype"] not in ("uint16", "uint32"):
        raise ShardError(f"dtype is {header['dtype']!r}, expected uint16 or uint32", place=str(path))
    return dict(header)


def _map(path: Path, kind: np.dtype[Any], count: int) -> Array:
    size = path.stat().st_size if path.is_file() else -1
    expected = count * kind.itemsize
    if size != expected:
        what = "is missing" if size < 0 else f"has {size} bytes, expected {expected} ({count} x {kind.itemsize})"
        raise ShardError(what, place=str(path))
    return np.memmap(path, kind, "r") if count else np.zeros(0, kind)
