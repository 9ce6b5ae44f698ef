"""Text in passages: blocks between blank lines, which are held out, compared and tokenised as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

_PASSAGE, _PORTION = 2000, 1_000_000
"""Most characters of a passage, and of what is tokenised in one call."""


def passages(text: str) -> list[str]:
    """The text in pieces that join to it again: blocks with the blank lines after them, long ones cut at line ends.

    A line that is too long by itself is cut anywhere.
    """
    found: list[str] = []
    current: list[str] = []
    size, after_blank = 0, False
    lines = text.splitlines(keepends=True)
    for line in (whole[i : i + _PASSAGE] for whole in lines for i in range(0, len(whole), _PASSAGE)):
        blank = not line.strip()
        if current and ((after_blank and not blank) or size + len(line) > _PASSAGE):
            found.append("".join(current))
            current, size = [], 0
        current.append(line)
        size, after_blank = size + len(line), blank
    return [*found, "".join(current)] if current else found


def passage_key(passage: str) -> bytes:
    """What makes two passages the same: their words in order."""
    return hashlib.sha256(" ".join(passage.split()).encode("utf-8", "surrogatepass")).digest()[:16]


def portions(text: str) -> Iterator[str]:
    """The text in pieces of at most a megabyte, so that the tokenizer's tables stay small."""
    current: list[str] = []
    size = 0
    for p in passages(text):
        if current and size + len(p) > _PORTION:
            yield "".join(current)
            current, size = [], 0
        current.append(p)
        size += len(p)
    yield "".join(current)
