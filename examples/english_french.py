"""English-French sentence pairs from Debian's packages: english_french.py FOLDER writes en-fr.tsv and en-fr-chat.jsonl.

Help pages of LibreOffice, whose paragraphs carry the same ids in both languages, and message catalogues of programs.
The second file asks for 2,000 of the shorter ones as a chat. Licences as of the packages (MPL, GPL); made at run time,
never shipped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import polib
from debian import unpacked
from monograph import MonographError
from monograph.ir.files import staged

HELP = ("libreoffice-help-en-us", "libreoffice-help-fr")
CATALOGUES = (
    "libreoffice-l10n-fr", "gnucash-common", "inkscape", "gimp-data", "krita-l10n", "digikam-data", "lyx-common",
    "kmymoney-common", "freeciv-data",
)  # fmt: skip
LEAST_WORDS, MOST_WORDS, MOST_RATIO = 4, 60, 2.5
"""Of the English side; and how much longer one side may be than the other, in characters."""

CHATS, CHAT_WORDS = 2000, 12
"""How many pairs are asked for in a chat, and how long they may be."""

Pair = tuple[str, str]


class Paragraphs(HTMLParser):
    """Text of the paragraphs and headings that have an id, by id."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self.tag, self.id, self.parts = "", "", list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        name = dict(attrs).get("id")
        if re.fullmatch(r"p|h[1-6]", tag) and name:
            self.tag, self.id, self.parts = tag, name, []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == self.tag and self.id:
            self.found[self.id] = "".join(self.parts)
            self.id = ""


def help_pages() -> Iterator[Pair]:
    folders = [unpacked(package) / "usr/share/libreoffice/help" for package in HELP]
    english, french = folders[0] / "en-US/text", folders[1] / "fr/text"
    for page in sorted(english.rglob("*.html")):
        other = french / page.relative_to(english)
        if other.exists():
            ours, theirs = paragraphs(page), paragraphs(other)
            yield from ((ours[k], theirs[k]) for k in ours if k in theirs)


def paragraphs(page: Path) -> dict[str, str]:
    parser = Paragraphs()
    parser.feed(page.read_text(encoding="utf-8", errors="replace"))
    return parser.found


def catalogues() -> Iterator[Pair]:
    for package in CATALOGUES:
        for path in sorted(unpacked(package).rglob("*.mo")):
            if "fr" in path.parts or path.stem == "fr":
                yield from ((entry.msgid, entry.msgstr) for entry in polib.mofile(str(path)))


def clean(text: str) -> str:
    """One line, without the marks of keyboard shortcuts."""
    return re.sub(r"\s+", " ", re.sub(r"[_&~](?=\w)", "", text)).strip()


def fits(english: str, french: str) -> bool:
    words = len(english.split())
    ratio = max(len(english), len(french)) / max(min(len(english), len(french)), 1)
    return english != french and LEAST_WORDS <= words <= MOST_WORDS and ratio <= MOST_RATIO


def pairs() -> list[Pair]:
    """Every pair that fits once, in an order that has nothing to do with where it comes from but is always the same."""
    found = {(clean(a), clean(b)) for source in (help_pages(), catalogues()) for a, b in source}
    kept = [pair for pair in found if fits(*pair)]
    return sorted(kept, key=lambda pair: hashlib.sha256("\t".join(pair).encode()).digest())


def chats(found: list[Pair]) -> Iterator[str]:
    short = [pair for pair in found if len(pair[0].split()) <= CHAT_WORDS]
    for english, french in short[:CHATS]:
        asked = {"role": "user", "content": f"Translate into French: {english}"}
        yield json.dumps({"messages": [asked, {"role": "assistant", "content": french}]}, ensure_ascii=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="where the files go")
    folder = parser.parse_args().folder
    try:
        found = pairs()
        with staged(folder) as stage:
            with stage.open("en-fr.tsv") as f:
                f.writelines(f"{a}\t{b}\n".encode() for a, b in found)
            with stage.open("en-fr-chat.jsonl") as f:
                f.writelines(f"{line}\n".encode() for line in chats(found))
    except MonographError as e:
        print(e, file=sys.stderr)
        return 1
    print(f"{folder}: {len(found):,} pairs, {sum(len(a.split()) for a, _ in found):,} English words")
    return 0


if __name__ == "__main__":
    sys.exit(main())
