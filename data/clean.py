"""Clean documents: Unicode, control characters, boilerplate lines and quality filters, each with its own count."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

from .filters import FILTERS, Filter, Page, expand
from .recipe import Clean

# Everything of category Cc but tab and line feed, the byte-order mark, soft hyphens, zero-width spaces, direction
# overrides, non-characters and lone surrogates. Joiners (U+200C, U+200D) stay: they carry meaning in several scripts.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)
_FORMS: dict[str, Literal["NFC", "NFKC"]] = {"NFC": "NFC", "NFKC": "NFKC"}
_NEWLINE = re.compile("\r\n?|\x85|\u2028|\u2029")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_BLANK = re.compile(r"\n{3,}")
EXAMPLES = 3
_EXCERPT = 300


@dataclass
class Counts:
    """What cleaning did: documents removed (or changed) by each filter, characters gone, and a few examples."""

    documents: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, name: str, characters: int, excerpt: str) -> None:
        self.documents[name] += 1
        self.characters[name] += characters
        kept = self.examples.setdefault(name, [])
        if len(kept) < EXAMPLES:
            kept.append(excerpt[:_EXCERPT])

    def to_dict(self) -> dict[str, Any]:
        return {
            "documents": dict(self.documents),
            "characters": dict(self.characters),
            "lines": dict(self.lines),
            "examples": self.examples,
        }

    def add(self, other: dict[str, Any]) -> None:
        self.documents.update(other["documents"])
        self.characters.update(other["characters"])
        self.lines.update(other["lines"])
        for name, texts in other["examples"].items():
            kept = self.examples.setdefault(name, [])
            kept += texts[: EXAMPLES - len(kept)]


class Cleaner:
    """Applies the steps of a recipe in their documented order: Unicode, characters, edits, lines, documents."""

    def __init__(self, settings: Clean) -> None:
        self.form: Literal["NFC", "NFKC"] | None = _FORMS.get(settings.unicode)
        chosen = [FILTERS[name] for name in expand(settings.filters)]
        self.limits = {f.name: settings.limits.get(f.name, f.limit) for f in chosen}
        self.edits, self.lines, self.documents = (
            [f for f in chosen if f.kind == kind] for kind in ("edit", "line", "document")
        )

    def __call__(self, text: str, counts: Counts) -> Page | None:
        """The cleaned document, or None after counting which filter removed it."""
        text = self.characters(text, counts)
        for f in self.edits:
            changed = str(f.apply(text))
            if len(changed) != len(text):
                counts.note(f.name, len(text) - len(changed), text)
                text = changed
        if self.lines:
            text = self._without_lines(text, counts)
        text = text.strip()
        if not text:
            counts.note("empty", 0, "")
            return None
        page = Page(text)
        for f in self.documents:
            if self._fires(f, page):
                counts.note(f.name, len(text), text)
                return None
        return page

    def characters(self, text: str, counts: Counts) -> str:
        """The text in one normal form, without control characters, with line feeds only and no trailing blanks."""
        if self.form is not None and not unicodedata.is_normalized(self.form, text):
            text = unicodedata.normalize(self.form, text)
            counts.documents["unicode_normalised"] += 1
        if not text.isascii() or "\r" in text:
            text = _NEWLINE.sub("\n", text)
        text, found = _CONTROL.subn("", text)
        if found:
            counts.documents["control_characters"] += 1
            counts.characters["control_characters"] += found
        return _BLANK.sub("\n\n", _TRAILING.sub("", text))

    def _without_lines(self, text: str, counts: Counts) -> str:
        kept: list[str] = []
        fired: dict[str, str] = {}
        for line in text.split("\n"):
            name = next((f.name for f in self.lines if self._fires(f, line)), None) if line.strip() else None
            if name is None:
                kept.append(line)
                continue
            counts.lines[name] += 1
            counts.characters[name] += len(line)
            fired.setdefault(name, line)
        for name, line in fired.items():
            counts.note(name, 0, line)
        return _BLANK.sub("\n\n", "\n".join(kept)) if fired else text

    def _fires(self, f: Filter, subject: Page | str) -> bool:
        limit = self.limits[f.name]
        return bool(f.apply(subject) if limit is None else f.apply(subject, limit))
