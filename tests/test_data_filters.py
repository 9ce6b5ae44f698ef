"""Cleaning: every filter by a text it removes and one it leaves, its counter, and the numbers behind repetition."""

from __future__ import annotations

import pytest
from monograph.data.clean import Cleaner, Counts
from monograph.data.filters import FILTERS, SETS, Page, expand
from monograph.data.recipe import Clean
from monograph.data.repetition import Repeats, paragraphs, share
from monograph.ir.errors import ConfigError

PLAIN = "The cat sat on the mat and looked at the bird that had come to have a rest with us. "
DIFFERENT = " ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(200))
HALF = " ".join(f"w{i}" for i in range(90))

# name: (a document or line that goes, one that stays just within the limit)
CASES = {
    "javascript_line": ("Please enable JavaScript to go on.", "Please enable cookies to go on."),
    "policy_line": ("Read our Privacy Policy first.", "Read our policy first."),
    "open_line": ("Home | About | Contact", 'She said "no."'),
    "short_line": ("Just four words here.", "These are exactly five words."),
    "lorem_ipsum": ("Here stands Lorem ipsum dolor.", "Here stands a text."),
    "curly_bracket": ("if (x) { return; }", "if (x) return;"),
    "few_sentences": ("One. Two.", "One. Two! Three?"),
    "few_words": ("word " * 49, "word " * 50),
    "many_words": ("a " * 100_001, "a " * 100_000),
    "short_words": ("ab abc abc", "abc abc abc"),
    "long_words": ("abcdefghijk", "abcdefghij"),
    "hash_signs": ("# # " + "word " * 8, "# " + "word " * 9),
    "ellipses": ("and ... so \u2026 on it goes", "and so on it goes a bit and more ..."),
    "bullet_lines": ("- a\n* b\n\u2022 c", "- a\n- b\n- c\n- d\n- e\n- f\n- g\n- h\n- i\nend"),
    "ellipsis_lines": ("a ...\nb ...\nc", "a ...\nb\nc\nd"),
    "not_words": ("a b c 1 2", "a b c d 1"),
    "no_stop_words": ("the The THE", "The cat and"),
    "repeated_lines": ("a\na\na\nb", "a\na\nb\nc"),
    "repeated_line_text": ("abcdefgh\nabcdefgh\nabcd", "ab\nab\nabcdefghijkl"),
    "repeated_paragraphs": ("a\n\na\n\na\n\nb", "a\n\na\n\nb\n\nc"),
    "repeated_paragraph_text": ("abcdefgh\n\nabcdefgh\n\nabcd", "ab\n\nab\n\nabcdefghijkl"),
    "top_2_gram": ("aa bb cc aa bb dd aa bb ee", DIFFERENT + " aa bb aa bb"),
    "top_3_gram": ("aa bb cc dd aa bb cc ee", DIFFERENT + " aa bb cc aa bb cc"),
    "top_4_gram": ("aa bb cc dd ee aa bb cc dd ff", DIFFERENT + " aa bb cc dd aa bb cc dd"),
    **{f"repeated_{n}_grams": (f"{HALF} {' '.join(HALF.split()[:20])}", DIFFERENT + " a b" * 2) for n in range(5, 11)},
}


@pytest.mark.parametrize("name", [n for n, f in FILTERS.items() if f.kind != "edit"])
def test_every_filter_removes_what_it_should_and_no_more(name: str) -> None:
    f = FILTERS[name]
    more = () if f.limit is None else (f.limit,)
    bad, good = (text if f.kind == "line" else Page(text) for text in CASES[name])
    assert f.apply(bad, *more)
    assert not f.apply(good, *more)


@pytest.mark.parametrize("name", list(FILTERS))
def test_every_filter_says_what_it_does_and_where_it_comes_from(name: str) -> None:
    assert FILTERS[name].says
    assert FILTERS[name].source in ("C4", "Gopher")
    assert (FILTERS[name].limit is not None) == ("`limit`" in FILTERS[name].says)


def test_citation_marks_are_taken_out_and_brackets_stay() -> None:
    assert FILTERS["citation_marks"].apply("Water[1] is wet[citation needed], a[i] too.") == "Water is wet, a[i] too."


def test_counts_name_the_first_filter_that_fires() -> None:
    cleaner, counts = Cleaner(Clean(filters=("few_words", "no_stop_words", "curly_bracket"))), Counts()
    assert cleaner("so short", counts) is None
    assert cleaner("xyz " * 60, counts) is None
    assert cleaner(PLAIN * 5 + "{", counts) is None
    page = cleaner(PLAIN * 5, counts)
    assert page is not None and page.text == (PLAIN * 5).strip()
    assert dict(counts.documents) == {"few_words": 1, "no_stop_words": 1, "curly_bracket": 1}
    assert counts.characters["few_words"] == len("so short")
    assert counts.examples["few_words"] == ["so short"]


def test_line_filters_count_lines_and_documents() -> None:
    cleaner, counts = Cleaner(Clean(filters=("javascript_line", "policy_line"))), Counts()
    page = cleaner("One.\nTurn on JavaScript!\nTwo.\nOur privacy policy\nUse JavaScript.\n\n\n\nThree.", counts)
    assert page is not None and page.text == "One.\nTwo.\n\nThree."
    assert dict(counts.lines) == {"javascript_line": 2, "policy_line": 1}
    assert dict(counts.documents) == {"javascript_line": 1, "policy_line": 1}
    assert counts.characters["javascript_line"] == len("Turn on JavaScript!") + len("Use JavaScript.")


def test_characters_are_normalised_and_controls_removed() -> None:
    cleaner, counts = Cleaner(Clean(filters=())), Counts()
    text = "\ufeffcafe\u0301\r\nline\x00 two\u200b \t\rthree\u2028four\u202e \ud800 joi\u200dned"
    page = cleaner(text, counts)
    assert page is not None and page.text == "caf\u00e9\nline two\nthree\nfour  joi\u200dned"
    assert counts.documents["unicode_normalised"] == 1
    assert counts.characters["control_characters"] == 5  # U+FEFF, NUL, U+200B, U+202E and the lone surrogate
    kept = Cleaner(Clean(unicode="none", filters=()))("e\u0301", Counts())
    assert kept is not None and kept.text == "e\u0301"
    wide = Cleaner(Clean(unicode="NFKC", filters=()))("\uff21\ufb01", Counts())
    assert wide is not None and wide.text == "Afi"


def test_a_document_of_nothing_is_counted() -> None:
    counts = Counts()
    assert Cleaner(Clean(filters=()))(" \n\x00\t ", counts) is None
    assert counts.documents["empty"] == 1


def test_counts_add_up_and_keep_few_examples() -> None:
    total = Counts()
    for i in range(5):
        one = Counts()
        one.note("few_words", 10, f"text {i}")
        total.add(one.to_dict())
    assert total.documents["few_words"] == 5 and total.characters["few_words"] == 50
    assert total.examples["few_words"] == ["text 0", "text 1", "text 2"]


def test_limits_of_the_recipe_replace_those_of_the_paper() -> None:
    cleaner = Cleaner(Clean(filters=("few_words",), limits={"few_words": 2}))
    assert cleaner("one two", Counts()) is not None
    assert cleaner("one", Counts()) is None


def test_repetition_by_hand() -> None:
    # 8 words of 2 letters; "aa bb" three times: 3 x 4 of 16 letters.
    r = Repeats(["aa", "bb", "cc", "aa", "bb", "dd", "aa", "bb"])
    assert r.top(2) == pytest.approx(12 / 16)
    assert r.top(3) == 0.0
    # "aa bb cc dd ee" again: its second occurrence is 10 of 22 letters.
    r = Repeats(["aa", "bb", "cc", "dd", "ee", "ff", "aa", "bb", "cc", "dd", "ee"])
    assert r.duplicated(5) == pytest.approx(10 / 22)
    assert r.duplicated(6) == 0.0
    # Overlapping repeats are counted once: of 12 equal words, all but the first 5-gram's first word repeat.
    assert Repeats(["ab"] * 12).duplicated(5) == pytest.approx(11 / 12)
    assert Repeats([]).top(2) == 0.0 and Repeats(["a"]).duplicated(5) == 0.0
    assert share(["a", "bb", "a"], by_length=False) == pytest.approx(1 / 3)
    assert share(["a", "bb", "a"], by_length=True) == pytest.approx(1 / 4)
    assert share([], by_length=True) == 0.0
    assert paragraphs("a\nb\n \nc\n\n\n") == ["a\nb", "c"]


def test_sets_and_names() -> None:
    assert expand(["few_words", "boilerplate"])[0] == "citation_marks"
    assert set(SETS["c4"]) | set(SETS["gopher"]) == set(FILTERS)
    with pytest.raises(ConfigError, match="did you mean 'gopher'"):
        expand(["gofer"])
    with pytest.raises(ConfigError, match="did you mean 'few_words'"):
        expand(["few_word"])
