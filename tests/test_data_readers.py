"""Reading: every format gives the same documents however it is cut, and damage is counted or refused with its place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from monograph.data.errors import DataError
from monograph.data.readers import Seen, documents, find, plan
from monograph.data.recipe import Input

TEXTS = [f"Document {i}: " + "w\u00f6rd " * (i % 7 + 1) for i in range(40)]


def read(settings: Input, piece_bytes: int = 1 << 20) -> tuple[list[str], Seen]:
    seen = Seen.new()
    return [t for piece in plan(settings, piece_bytes) for t in documents(piece, settings, seen)], seen


def jsonl(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": t, "n": 1}, ensure_ascii=False).encode() + b"\n" for t in texts)


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def parquet(path: Path, texts: list[str | None], rows: int = 7, column: str = "text") -> None:
    pq.write_table(pa.table({"id": list(range(len(texts))), column: texts}), path, row_group_size=rows)


@pytest.mark.parametrize("piece_bytes", [1, 7, 100, 333, 1 << 20])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n\n\n"])
def test_jsonl_lines_belong_to_one_span_each(tmp_path: Path, piece_bytes: int, end: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS).rstrip(b"\n") + end)
    found, seen = read(Input(paths=(str(tmp_path / "a.jsonl"),)), piece_bytes)
    assert found == TEXTS
    assert seen.counts["documents"] == len(TEXTS) and not seen.places


@pytest.mark.parametrize("piece_bytes", [1, 5, 64, 1000, 1 << 20])
@pytest.mark.parametrize("separator", ["", "<|endoftext|>"])
def test_documents_between_separators(tmp_path: Path, piece_bytes: int, separator: str) -> None:
    docs = [f"first line {i}\nsecond line" for i in range(20)]
    mark = f"\n{separator}\n"
    text = f"{separator}\n" + mark.join(docs) + mark + f"{separator}\nlast"
    (tmp_path / "a.txt").write_text(text)
    settings = Input(paths=(str(tmp_path),), documents="separator", separator=separator)
    found, _ = read(settings, piece_bytes)
    assert [d.strip() for d in found] == [*docs, "last"]


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd)],
)
def test_compressed_files_give_the_same(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    (tmp_path / name).write_bytes(pack(jsonl(TEXTS)))
    assert read(Input(paths=(str(tmp_path / name),)), 50)[0] == TEXTS


def test_gzip_and_zstd_of_several_streams(tmp_path: Path) -> None:
    half = len(TEXTS) // 2
    for name, pack in (("a.jsonl.gz", gzip.compress), ("b.jsonl.zst", zstd)):
        (tmp_path / name).write_bytes(pack(jsonl(TEXTS[:half])) + pack(jsonl(TEXTS[half:])))
        assert read(Input(paths=(str(tmp_path / name),)))[0] == TEXTS


@pytest.mark.parametrize("piece_bytes", [1, 200, 1 << 20])
def test_parquet_by_row_groups(tmp_path: Path, piece_bytes: int) -> None:
    parquet(tmp_path / "a.parquet", TEXTS, column="content")
    assert read(Input(paths=(str(tmp_path),), field="content"), piece_bytes)[0] == TEXTS


def test_small_files_share_a_piece_and_keep_their_order(tmp_path: Path) -> None:
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i:03d}.txt").write_text(text, encoding="utf-8")
    settings = Input(paths=(str(tmp_path),))
    pieces = list(plan(settings, 500))
    assert 2 < len(pieces) < len(TEXTS)
    assert all(sum(s.size for s in p) <= 500 for p in pieces)
    assert read(settings, 500)[0] == TEXTS


def test_paths_are_files_folders_and_globs_each_file_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.txt", "a.md", "c.bin"):
        (tmp_path / "in" / name).write_text("x")
    paths = (str(tmp_path / "in"), str(tmp_path / "in" / "*.txt"), str(tmp_path / "in" / "a.md"))
    assert [p.name for p in find(Input(paths=paths))] == ["a.md", "b.txt"]
    with pytest.raises(DataError, match=r"in/b\.text: names no file .*\n  hint: did you mean 'b\.txt'"):
        find(Input(paths=(str(tmp_path / "in" / "b.text"),)))
    with pytest.raises(DataError, match=r"c\.bin: has a name that tells no format"):
        list(plan(Input(paths=(str(tmp_path / "in" / "c.bin"),)), 10))


def test_damaged_documents_are_counted_with_their_first_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [b'{"text": "good"}', b'{"text": "bad \xff"}', b"{nope", b'{"txt": 1}', b'["text"]', b'{"text": 5}']
    path.write_bytes(b"\n".join([*lines, b'{"text": "' + b"x" * 200 + b'"}', b'{"text": "end"}']))
    settings = Input(paths=(str(path),), max_document_bytes=100)
    found, seen = read(settings)
    assert found == ["good", "end"]
    assert dict(seen.counts) == {
        "documents": 2,
        "bytes": seen.counts["bytes"],
        "not_utf8": 1,
        "not_json": 1,
        "no_text": 3,
        "oversize": 1,
    }
    assert seen.places["not_utf8"] == f"{path}: byte 17: byte 14 of the document is 0xff"
    assert "no text under 'text' (found txt)" in seen.places["no_text"]
    with pytest.raises(DataError, match=rf"{path}: byte 17: not_utf8: byte 14 of the document is 0xff"):
        read(Input(paths=(str(path),), damaged="refuse"))


def test_oversize_lines_are_never_held(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"short\n" + b"x" * (5 << 20) + b"\nend\n")
    found, seen = read(Input(paths=(str(path),), documents="line", max_document_bytes=1000))
    assert found == ["short\n", "end\n"] and seen.counts["oversize"] == 1
    settings = Input(paths=(str(path),), documents="separator", separator="--", max_document_bytes=1000)
    found, seen = read(settings)
    assert found == [] and seen.counts["oversize"] == 1
    with pytest.raises(DataError, match="is one document of more than 1000 bytes"):
        read(Input(paths=(str(path),), max_document_bytes=1000))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        parquet(path, TEXTS)
    else:
        path.write_bytes((gzip.compress if name.endswith("gz") else zstd)(jsonl(TEXTS * 50)))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=f"{name}: .*(cannot be read to its end|is not a parquet file)"):
        read(Input(paths=(str(path),)))


def test_parquet_without_the_column_and_with_gaps(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", ["one", None, "three"])
    with pytest.raises(DataError, match=r"has no column 'texts', did you mean 'text'\? \(it has id, text\)"):
        read(Input(paths=(str(tmp_path),), field="texts"))
    found, seen = read(Input(paths=(str(tmp_path),)))
    assert found == ["one", "three"] and seen.counts["no_text"] == 1
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is not parquet PAR1")
    with pytest.raises(DataError, match=r"a\.parquet: is not a parquet file"):
        read(Input(paths=(str(tmp_path),)))


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(TEXTS[:2]))
    assert read(Input(paths=(str(tmp_path),)))[0] == TEXTS[:2]
