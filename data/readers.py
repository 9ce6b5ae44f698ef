"""Documents out of files: text, JSON lines and parquet, plain or compressed, in pieces of bounded size.

A piece is the unit of work and of resuming: spans of files, in the order of their names. Plain files of lines are cut
by bytes, parquet by row groups; compressed files and whole-file documents are not cut. Compressed streams are read by
pyarrow, because it reports a truncated zstd file where the `zstandard` package ends without a word.
"""

from __future__ import annotations

import glob
import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..ir.documents import parse_json
from ..ir.errors import did_you_mean
from .errors import DataError, need
from .recipe import Input
from .tables import is_table

_COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
_FORMATS = {
    ".txt": "text", ".text": "text", ".md": "text", ".rst": "text",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
}  # fmt: skip
_CHUNK = 1 << 20
_ROWS = 256
"""Rows of a parquet file that are turned into Python texts at a time."""


@dataclass(frozen=True)
class Span:
    """Part of a file: bytes `start` to `end` (-1: all), or row groups for parquet."""

    path: str
    format: str
    start: int
    end: int
    size: int


@dataclass
class Seen:
    """What reading met besides documents: counts, and the first place of each kind of damage."""

    counts: Counter[str]
    places: dict[str, str]
    digest: Any

    @staticmethod
    def new() -> Seen:
        return Seen(Counter(), {}, hashlib.blake2b(digest_size=16))

    def damaged(self, kind: str, place: str, refuse: bool, why: str) -> None:
        if refuse:
            raise DataError(f"{kind}: {why}", place=place, hint='input.damaged = "count" leaves such documents out')
        self.counts[kind] += 1
        self.places.setdefault(kind, f"{place}: {why}")


def find(settings: Input) -> list[Path]:
    """The files that the paths name, sorted, each once. Raises DataError for a path that names nothing."""
    found: set[Path] = set()
    for pattern in settings.paths:
        path = Path(pattern)
        if path.is_dir():
            here = [p for p in path.rglob("*") if p.is_file() and _format(p) is not None]
        else:
            # pathlib takes no absolute patterns.
            here = [path] if path.is_file() else [Path(p) for p in glob.glob(pattern, recursive=True)]  # noqa: PTH207
            here = [p for p in here if p.is_file()]
        if not here:
            raise DataError("names no file that can be read", place=pattern, hint=_hint(path))
        found.update(here)
    return sorted(found)


def plan(settings: Input, piece_bytes: int) -> Iterator[list[Span]]:
    """All the input in pieces of about `piece_bytes`. Raises DataError naming a file of unknown format."""
    piece: list[Span] = []
    size = 0
    for span in (s for path in find(settings) for s in _spans(path, settings, piece_bytes)):
        if piece and size + span.size > piece_bytes:
            yield piece
            piece, size = [], 0
        piece.append(span)
        size += span.size
    if piece:
        yield piece


def to_json(piece: list[Span]) -> list[dict[str, Any]]:
    return [asdict(span) for span in piece]


def documents(piece: list[Span], settings: Input, seen: Seen) -> Iterator[str]:
    """The texts of a piece, in order, one at a time.

    Raises DataError naming file and place for a file that is truncated or not what its name says.
    """
    for span in piece:
        read = _parquet if span.format == "parquet" else _lines_of if _cut(span, settings) else _whole
        for place, data in read(span, settings, seen):
            text = _decode(place, data, span, settings, seen)
            if text is not None:
                seen.counts["documents"] += 1
                yield text


def _spans(path: Path, settings: Input, piece_bytes: int) -> Iterator[Span]:
    form = settings.format if settings.format != "auto" else _format(path)
    if form is None:
        raise DataError(
            f"has a name that tells no format: expected one of {', '.join(_FORMATS)}, plain or .gz or .zst",
            place=str(path),
            hint="set input.format",
        )
    size = path.stat().st_size
    if form == "parquet":
        yield from _row_groups(path, piece_bytes)
        return
    whole = Span(str(path), form, 0, -1, size)
    if path.suffix in _COMPRESSED or not _cut(whole, settings):
        yield whole
        return
    for start in range(0, size, piece_bytes):
        end = min(start + piece_bytes, size)
        yield Span(str(path), form, start, end, end - start)


def _row_groups(path: Path, piece_bytes: int) -> Iterator[Span]:
    with _parquet_file(path) as file:
        start = size = 0
        for i in range(file.num_row_groups):
            rows = file.metadata.row_group(i).total_byte_size
            if i > start and size + rows > piece_bytes:
                yield Span(str(path), "parquet", start, i, size)
                start, size = i, 0
            size += rows
        yield Span(str(path), "parquet", start, file.num_row_groups, size)


def _cut(span: Span, settings: Input) -> bool:
    """Whether documents of this span are made of lines."""
    return span.format == "jsonl" or settings.documents != "file"


def _format(path: Path) -> str | None:
    suffixes = [s.lower() for s in path.suffixes if s.lower() not in _COMPRESSED]
    return _FORMATS.get(suffixes[-1]) if suffixes else None


def _hint(path: Path) -> str:
    near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, near).removeprefix(", ")


def _open(path: str) -> BinaryIO:
    kind = _COMPRESSED.get(Path(path).suffix)
    if kind is None:
        return Path(path).open("rb")
    pa = need("pyarrow", "pyarrow", "data", "reading compressed files")
    return pa.input_stream(path, compression=kind, buffer_size=_CHUNK)


class _Lines:
    """Lines of a stream with their offsets; one longer than `most` bytes comes as None and is never held."""

    def __init__(self, span: Span, most: int, digest: Any) -> None:
        self.span, self.most, self.digest = span, most, digest

    def __iter__(self) -> Iterator[tuple[int, bytes | None]]:
        start = self.span.start
        with _open(self.span.path) as stream:
            if start:
                stream.seek(start - 1)  # The line that begins exactly at `start` belongs to this span.
            at, skip_first = start - bool(start), bool(start)
            line, size, lost = bytearray(), 0, False
            for chunk in self._chunks(stream):
                begin = 0
                while True:
                    stop = chunk.find(b"\n", begin)
                    part = chunk[begin:] if stop < 0 else chunk[begin : stop + 1]
                    size += len(part)
                    lost = lost or size > self.most + 1
                    line = bytearray() if lost else line + part
                    if stop < 0:
                        break
                    if not skip_first:
                        yield at, None if lost else bytes(line)
                    at, skip_first, begin = at + size, False, stop + 1
                    line, size, lost = bytearray(), 0, False
            if size and not skip_first:
                yield at, None if lost else bytes(line)

    def _chunks(self, stream: BinaryIO) -> Iterator[bytes]:
        try:
            while chunk := stream.read(_CHUNK):
                yield chunk
        except OSError as e:
            raise DataError(f"cannot be read to its end: {e}", place=self.span.path) from None


def _lines_of(span: Span, settings: Input, seen: Seen) -> Iterator[tuple[str, bytes]]:
    """Documents that are lines, or lines between separators, of the part of a file that a span owns."""
    end = sys.maxsize if span.end < 0 else span.end
    lines = iter(_Lines(span, settings.max_document_bytes, seen.digest))
    if span.format == "jsonl" or settings.documents == "line":
        for at, line in lines:
            if at >= end:
                return
            yield from _one(f"{span.path}: byte {at}", line, settings, seen)
        return
    yield from _separated(span, end, lines, settings, seen)


def _separated(
    span: Span, end: int, lines: Iterator[tuple[int, bytes | None]], settings: Input, seen: Seen
) -> Iterator[tuple[str, bytes]]:
    """A document belongs to the span in which the separator before it begins; the first one to the first span."""
    mark = settings.separator.encode()
    inside, begin, size = span.start == 0, span.start, 0
    parts: list[bytes] = []
    whole = True
    for at, line in lines:
        if line is None or line.rstrip(b"\r\n") != mark:
            size += settings.max_document_bytes + 1 if line is None else len(line)
            whole = size <= settings.max_document_bytes
            if inside and whole and line is not None:
                parts.append(line)
            elif not whole:
                parts.clear()
            continue
        if inside and (parts or not whole):
            yield from _one(f"{span.path}: byte {begin}", b"".join(parts) if whole else None, settings, seen)
        if at >= end:
            return
        inside, begin, size, parts, whole = True, at + len(line), 0, [], True
    if inside and (parts or not whole):
        yield from _one(f"{span.path}: byte {begin}", b"".join(parts) if whole else None, settings, seen)


def _one(place: str, data: bytes | None, settings: Input, seen: Seen) -> Iterator[tuple[str, bytes]]:
    if data is None:
        why = f"has more than {settings.max_document_bytes} bytes"
        seen.damaged("oversize", place, settings.damaged == "refuse", why)
    elif data.strip():
        seen.digest.update(data)
        seen.counts["bytes"] += len(data)
        yield place, data


def _whole(span: Span, settings: Input, seen: Seen) -> Iterator[tuple[str, bytes]]:
    with _open(span.path) as stream:
        try:
            data = stream.read(settings.max_document_bytes + 1)
        except OSError as e:
            raise DataError(f"cannot be read to its end: {e}", place=span.path) from None
    if len(data) > settings.max_document_bytes:
        raise DataError(
            f"is one document of more than {settings.max_document_bytes} bytes",
            place=span.path,
            hint='set input.documents to "line" or "separator", or raise input.max_document_bytes',
        )
    yield from _one(span.path, data, settings, seen)


def _parquet_file(path: str | Path) -> Any:
    parquet = need("pyarrow.parquet", "pyarrow", "data", "reading parquet")
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as e:
        raise DataError(f"is not a parquet file that can be read: {e}", place=str(path)) from None


def _parquet(span: Span, settings: Input, seen: Seen) -> Iterator[tuple[str, bytes]]:
    with _parquet_file(span.path) as file:
        names = file.schema_arrow.names
        if settings.field not in names:
            more = did_you_mean(settings.field, names)
            raise DataError(f"has no column {settings.field!r}{more} (it has {', '.join(names)})", place=span.path)
        number = 0
        try:
            groups = list(range(span.start, span.end))
            for rows in file.iter_batches(_ROWS, row_groups=groups, columns=[settings.field]):
                for value in rows.column(0).to_pylist():
                    number += 1
                    yield from _cell(f"{span.path}: row group {span.start}, row {number}", value, settings, seen)
        except (OSError, ValueError) as e:
            raise DataError(f"cannot be read to its end: {e}", place=span.path) from None


def _cell(place: str, value: Any, settings: Input, seen: Seen) -> Iterator[tuple[str, bytes]]:
    if not isinstance(value, (str, bytes)):
        seen.damaged("no_text", place, settings.damaged == "refuse", f"{settings.field} is {type(value).__name__}")
        return
    data = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
    yield from _one(place, data if len(data) <= settings.max_document_bytes else None, settings, seen)


def _decode(place: str, data: bytes, span: Span, settings: Input, seen: Seen) -> str | None:
    """The text of a document, or None after counting what is wrong with it."""
    refuse = settings.damaged == "refuse"
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        seen.damaged("not_utf8", place, refuse, f"byte {e.start} of the document is {data[e.start]:#04x}")
        return None
    if span.format != "jsonl":
        return text.removeprefix("\ufeff")
    try:
        value = parse_json(text.removeprefix("\ufeff"))
    except ValueError as e:
        seen.damaged("not_json", place, refuse, str(e))
        return None
    found = value.get(settings.field) if is_table(value) else None
    if not isinstance(found, str):
        keys = ", ".join(map(str, value))[:80] if is_table(value) else type(value).__name__
        seen.damaged("no_text", place, refuse, f"no text under {settings.field!r} (found {keys})")
        return None
    return found
