"""Quality filters of the C4 and Gopher corpora: each a small function with its name, its limit and its counter.

C4: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", JMLR 2020,
section 2.2. Gopher: Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", 2021,
appendix A.1.1 and table A1 (the repetition filters are in repetition.py). C4's removal of repeated three-sentence
spans and of a list of words is not here: near-duplicates are found by MinHash, and a word list is a choice of the user.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from ..ir.errors import ConfigError, did_you_mean
from . import repetition


class Page:
    """A document and the views of it that filters share; each is made once, when first asked for."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def lines(self) -> list[str]:
        """Lines that hold something."""
        return [line for line in self.text.split("\n") if line.strip()]

    @cached_property
    def words(self) -> list[str]:
        return self.text.split()

    @cached_property
    def size(self) -> int:
        """Characters in words."""
        return sum(map(len, self.words))

    @cached_property
    def repeats(self) -> repetition.Repeats:
        return repetition.Repeats(self.words)


@dataclass(frozen=True)
class Filter:
    """kind "edit" rewrites a text, "line" tells whether a line goes, "document" whether the document goes.

    says: what goes, for the report; `limit` in it stands for the limit.
    """

    name: str
    kind: str
    limit: float | None
    source: str
    says: str
    apply: Callable[..., bool | str]


def _filter(
    kind: str, source: str, says: str, limit: float | None = None
) -> Callable[[Callable[..., bool | str]], Filter]:
    return lambda function: Filter(function.__name__, kind, limit, source, says, function)


_CITATION = re.compile(r"\[(?:\d{1,3}|citation needed|edit|note \d{1,3})\]")
_ENDS = (".", "!", "?", '"', "\u201d")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_SENTENCE = re.compile(r"[.!?]+[\"')\u201d]*(?:\s|$)")
_BULLETS = ("-", "*", "\u2022", "\u2023", "\u25e6", "\u25aa", "\u25cf", "\u00b7")
_STOP = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
_DOTS = ("...", "\u2026")


@_filter("edit", "C4", 'citation marks are taken out: a number, "citation needed" or "edit" in square brackets')
def citation_marks(text: str) -> str:
    return _CITATION.sub("", text) if "[" in text else text


@_filter("line", "C4", "lines that speak of Javascript")
def javascript_line(line: str) -> bool:
    return "javascript" in line.lower()


@_filter("line", "C4", "lines of policy notices: terms of use, privacy and cookie policies")
def policy_line(line: str) -> bool:
    low = line.lower()
    return any(phrase in low for phrase in _POLICY)


@_filter("line", "C4", "lines that do not end in . ! ? or a closing quotation mark")
def open_line(line: str) -> bool:
    return not line.rstrip().endswith(_ENDS)


@_filter("line", "C4", "lines of fewer than `limit` words", limit=5)
def short_line(line: str, limit: float) -> bool:
    return len(line.split()) < limit


@_filter("document", "C4", "placeholder text")
def lorem_ipsum(page: Page) -> bool:
    return "lorem ipsum" in page.text.lower()


@_filter("document", "C4", "a { anywhere: most likely code")
def curly_bracket(page: Page) -> bool:
    return "{" in page.text


@_filter("document", "C4", "fewer than `limit` sentences", limit=3)
def few_sentences(page: Page, limit: float) -> bool:
    return len(_SENTENCE.findall(page.text)) < limit


@_filter("document", "Gopher", "fewer than `limit` words", limit=50)
def few_words(page: Page, limit: float) -> bool:
    return len(page.words) < limit


@_filter("document", "Gopher", "more than `limit` words", limit=100_000)
def many_words(page: Page, limit: float) -> bool:
    return len(page.words) > limit


@_filter("document", "Gopher", "words shorter than `limit` characters on average", limit=3)
def short_words(page: Page, limit: float) -> bool:
    return page.size < limit * len(page.words)


@_filter("document", "Gopher", "words longer than `limit` characters on average", limit=10)
def long_words(page: Page, limit: float) -> bool:
    return page.size > limit * len(page.words)


@_filter("document", "Gopher", "more than `limit` hash signs for each word", limit=0.1)
def hash_signs(page: Page, limit: float) -> bool:
    return page.text.count("#") > limit * len(page.words)


@_filter("document", "Gopher", "more than `limit` ellipses for each word", limit=0.1)
def ellipses(page: Page, limit: float) -> bool:
    return sum(map(page.text.count, _DOTS)) > limit * len(page.words)


@_filter("document", "Gopher", "more than `limit` of the lines begin with a bullet", limit=0.9)
def bullet_lines(page: Page, limit: float) -> bool:
    return sum(line.lstrip().startswith(_BULLETS) for line in page.lines) > limit * len(page.lines)


@_filter("document", "Gopher", "more than `limit` of the lines end with an ellipsis", limit=0.3)
def ellipsis_lines(page: Page, limit: float) -> bool:
    return sum(line.rstrip().endswith(_DOTS) for line in page.lines) > limit * len(page.lines)


@_filter("document", "Gopher", "fewer than `limit` of the words hold a letter", limit=0.8)
def not_words(page: Page, limit: float) -> bool:
    return sum(word.isalpha() or any(map(str.isalpha, word)) for word in page.words) < limit * len(page.words)


@_filter("document", "Gopher", "fewer than `limit` different words of: the, be, to, of, and, that, have, with", limit=2)
def no_stop_words(page: Page, limit: float) -> bool:
    return len(_STOP.intersection(map(str.lower, page.words))) < limit


@_filter("document", "Gopher", "more than `limit` of the lines repeat an earlier one", limit=0.3)
def repeated_lines(page: Page, limit: float) -> bool:
    return repetition.share(page.lines, by_length=False) > limit


@_filter("document", "Gopher", "more than `limit` of the characters lie in lines that repeat an earlier one", limit=0.2)
def repeated_line_text(page: Page, limit: float) -> bool:
    return repetition.share(page.lines, by_length=True) > limit


@_filter("document", "Gopher", "more than `limit` of the paragraphs repeat an earlier one", limit=0.3)
def repeated_paragraphs(page: Page, limit: float) -> bool:
    return repetition.share(repetition.paragraphs(page.text), by_length=False) > limit


@_filter(
    "document", "Gopher", "more than `limit` of the characters lie in paragraphs that repeat an earlier one", limit=0.2
)
def repeated_paragraph_text(page: Page, limit: float) -> bool:
    return repetition.share(repetition.paragraphs(page.text), by_length=True) > limit


def _ngram_filter(n: int, limit: float) -> Filter:
    top = n <= 4

    def apply(page: Page, limit: float) -> bool:
        return (page.repeats.top(n) if top else page.repeats.duplicated(n)) > limit

    where = f"the most frequent {n}-gram" if top else f"{n}-grams that repeat an earlier one"
    says = f"more than `limit` of the characters lie in {where}"
    return Filter(f"top_{n}_gram" if top else f"repeated_{n}_grams", "document", limit, "Gopher", says, apply)


_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16, 5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""Limits of Gopher's table A1 by the length of the n-gram: of the most frequent one up to 4, then of all repeated."""

_ALL = (
    citation_marks, javascript_line, policy_line, open_line, short_line, lorem_ipsum, curly_bracket, few_sentences,
    few_words, many_words, short_words, long_words, hash_signs, ellipses, bullet_lines, ellipsis_lines, not_words,
    no_stop_words, repeated_lines, repeated_line_text, repeated_paragraphs, repeated_paragraph_text,
    *(_ngram_filter(n, limit) for n, limit in _NGRAMS.items()),
)  # fmt: skip
FILTERS: Mapping[str, Filter] = {f.name: f for f in _ALL}
"""Every filter by name, in the order in which they are applied."""

SETS: dict[str, tuple[str, ...]] = {
    "c4": tuple(n for n, f in FILTERS.items() if f.source == "C4"),
    "gopher": tuple(n for n, f in FILTERS.items() if f.source == "Gopher"),
    "boilerplate": ("citation_marks", "javascript_line", "policy_line", "lorem_ipsum"),
}
"""Names for several filters at once. C4's line rules suit crawled pages; they take code, tables and verse apart."""
DEFAULT = ("boilerplate", "gopher")


def expand(names: Iterable[str]) -> list[str]:
    """Filter names for names of filters and sets, in the order of application. Raises ConfigError with a suggestion."""
    wanted: set[str] = set()
    for name in names:
        if name not in SETS and name not in FILTERS:
            raise ConfigError(f"clean.filters: no filter is called {name!r}{did_you_mean(name, [*SETS, *FILTERS])}")
        wanted.update(SETS.get(name, (name,)))
    return [name for name in FILTERS if name in wanted]
