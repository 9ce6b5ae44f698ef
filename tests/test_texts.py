"""Text for calibration and quality: what is not UTF-8 is refused with its place, and of a long file little is read."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import monograph as mg
import pytest
from monograph.data.errors import CorpusError
from monograph.ir.errors import ConfigError, MonographError
from monograph.texts import beginning, named, pieces


@pytest.mark.parametrize("unit", ["a word ", "ein süßes Wort, ", "Слово за словом. ", "日本語の文章。", "😀 🎉 "])
@pytest.mark.parametrize("size", [1_000, 2_300_000])
def test_pieces_of_a_file_are_pieces_of_its_text(unit: str, size: int, tmp_path: Path) -> None:
    whole = unit * (size // len(unit.encode()))
    for text in (whole, "\ufeff" + whole):
        (tmp_path / "t.txt").write_text(text, encoding="utf-8")
        assert beginning(tmp_path / "t.txt", 500) == whole[:500]
        assert beginning(str(tmp_path / "t.txt"), 500) == whole[:500]
        found = pieces(tmp_path / "t.txt", 64, 20, 100)
        assert all(p and p in whole for p in found)
        assert len(found) > 5 and (len(found[-1]) == 64 or size > 10_000)
    assert pieces(whole, 64, 20, 100) == [p for p in found if p] or size > 10_000


def test_a_short_file_is_read_as_the_text_is(tmp_path: Path) -> None:
    text = mg.python_topics()[:100_000]
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    for width, count, skipped in [(64, 20, 100), (8192, 16, 24_000), (10**6, 1, 24_000), (7, 1000, 0)]:
        assert pieces(tmp_path / "t.txt", width, count, skipped) == pieces(text, width, count, skipped)


def test_of_a_long_file_little_is_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    with file.open("wb") as f:
        for _ in range(64):
            f.write(b"some words and more of them. " * 36_000)
    tracemalloc.start()
    assert len(pieces(file, 8192, 16, 24_000)) == 16 and len(beginning(file, 72_000)) == 72_000
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert file.stat().st_size > 60e6 and most < 3e6


WRONG: dict[str, tuple[bytes, str]] = {
    "latin-1": ("a caf\xe9 ".encode("latin-1") * 9, r"not UTF-8 at byte 5 \(e9\)"),
    "cp1252 at the end": (b"words " * 9 + b"\x93", r"not UTF-8 at byte 54 \(93\)"),
    "cut off": ("words 日".encode()[:-1], r"not UTF-8 at byte 6"),
    "UTF-16 with a mark": ("some words".encode("utf-16"), r"not UTF-8 at byte 0"),
    "UTF-16 without one": ("some words".encode("utf-16-le"), r"has a zero at byte 1: is it a binary file"),
    "UTF-32": ("some words".encode("utf-32-le"), r"has a zero at byte 1"),
    "binary": (bytes(range(1, 128)) + b"\0" * 100, r"has a zero at byte 127"),
    "compressed": (b"\x1f\x8b\x08\x00rest", r"not UTF-8 at byte 1"),
    "surrogates": (b"words \xed\xa0\x80", r"not UTF-8 at byte 6"),
    "far inside": (b"words " * 400_000 + b"\xff" * 9 + b"words " * 9, r"not UTF-8 at byte 2[34]\d{5} \(ff\)"),
    "empty": (b"", "there is no text to read"),
    "blank": (b" \n\t\n", "there is no text to read"),
    "only a mark": ("\ufeff".encode(), "there is no text to read"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_files_that_are_no_text(kind: str, tmp_path: Path) -> None:
    data, message = WRONG[kind]
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(MonographError, match=message):
        pieces(tmp_path / "t", 8192, 500, 0)
    if kind != "far inside":
        with pytest.raises(MonographError, match=message):
            beginning(tmp_path / "t", 8192)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "missing.txt"):
        with pytest.raises(CorpusError):
            pieces(tmp_path / name, 10, 1, 0)
    for name in ("missing.txt", "texts/here", "./a", "C:\\texts\\a.txt", str(tmp_path / "b")):
        with pytest.raises(ConfigError, match="there is no file"):
            beginning(name, 10)
    for text in ("a word", "one.", "and/or so", "3.5 is it", "word", "line\nmissing.txt"):
        assert beginning(text, 100) == text


@pytest.mark.parametrize("given", [5, b"bytes", ["a", 3], None, [b"x"], {"a": 1}])
def test_what_is_no_text(given: Any) -> None:
    with pytest.raises(ConfigError, match="a text holds"):
        beginning(given, 10)


def test_names(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("x y")
    assert named(tmp_path / "t.txt") == named(str(tmp_path / "t.txt")) == "t.txt"
    assert named("one two three four five six seven eight") == "'one two three four five six'"
    assert named(["first text", "second"]) == "'first text second'"
