"""Corpus and tokenizer: every byte survives, nothing leaks into the held-out part, batches are what they say."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monograph.data.byte_level import END, decode_bytes, encode_bytes, encode_plain, train_tokenizer
from monograph.data.errors import CorpusError
from monograph.data.passages import passage_key, passages
from monograph.frontends.tokenizer import Tokenizer
from monograph.ir.errors import ConfigError
from monograph.training.corpus import (
    Corpus,
    hold_out_text,
    hold_out_texts,
    make_batch,
    python_topics,
    read_text,
)

TEXT = "".join(f"Passage {i} says that {i * i} is the square of {i}.\nAnd so on.\n\n" for i in range(200))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXT, 400)


# -- tokenizer -------------------------------------------------------------------------------------------------


def test_tokenizer_is_reproducible_and_compresses(tokenizer: Tokenizer) -> None:
    assert tokenizer.size <= 400
    assert train_tokenizer(TEXT, 400).core.to_str() == tokenizer.core.to_str()
    assert len(encode_plain(tokenizer, TEXT)) < 0.4 * len(TEXT)
    assert tokenizer.eos_id == 0
    assert tokenizer.decode([0], skip_special=False) == END


@given(st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_bytes_come_back(tokenizer: Tokenizer, data: bytes) -> None:
    assert decode_bytes(tokenizer, encode_bytes(tokenizer, data)) == data


@given(st.text(max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = encode_plain(tokenizer, text)
    assert tokenizer.decode(ids, skip_special=False) == text
    assert encode_bytes(tokenizer, text.encode()) == ids, "bytes of valid text are that text"


def test_a_special_token_in_a_text_is_plain_text(tokenizer: Tokenizer) -> None:
    ids = encode_plain(tokenizer, f"a{END}b")
    assert 0 not in ids
    assert tokenizer.decode(ids) == f"a{END}b"
    assert 0 in tokenizer.encode(f"a{END}b"), "elsewhere it is special, as before"


def test_tokenizer_saved_and_loaded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = Tokenizer.open(tmp_path)
    assert loaded.encode("the square of ☕") == tokenizer.encode("the square of ☕")
    assert loaded.eos_ids == (0,)


def test_tokenizer_errors(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="vocab is 256, expected at least 257"):
        train_tokenizer(TEXT, 256)
    with pytest.raises(CorpusError, match=f"id 5000 is not in the vocabulary of {tokenizer.size}"):
        decode_bytes(tokenizer, [5000])


# -- reading and splitting -------------------------------------------------------------------------------------


def test_bad_encoding_names_file_and_offset(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("naïve ".encode() + b"\xff\xfe bytes")
    with pytest.raises(CorpusError) as e:
        read_text(path)
    assert str(e.value) == f"{path}: is not UTF-8 at byte 7 of 15 (ff): invalid start byte"
    path.write_bytes("ends in café".encode()[:-1])
    with pytest.raises(CorpusError, match=r"at byte 11 of 12 \(c3\): unexpected end of data"):
        read_text(path)
    with pytest.raises(CorpusError, match="there is no such file"):
        read_text(tmp_path / "none.txt")


def test_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert read_text(tmp_path / "a.txt") == "hello"


@given(st.text("ab \n\r\x0c\u2028", max_size=60))
@settings(max_examples=200, deadline=None)
def test_passages_join_to_the_text(text: str) -> None:
    found = passages(text)
    assert "".join(found) == text
    assert all(found)


def test_passages_end_at_blank_lines_or_when_long() -> None:
    assert passages("a\nb\n\n\nc\n \nd") == ["a\nb\n\n\n", "c\n \n", "d"]
    lines = "".join(f"{i:05} {'x' * 53}\n" for i in range(100))
    assert [len(p) for p in passages(lines)] == [33 * 60, 33 * 60, 33 * 60, 60]
    assert [len(p) for p in passages("x" * 4500 + "\ny")] == [2000, 2000, 502]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_nothing_leaks(share: float) -> None:
    for text in (python_topics(), TEXT, TEXT + TEXT):
        train, held_out = hold_out_text(text, share)
        assert text.startswith(train)
        assert not {passage_key(p) for p in passages(train)} & {passage_key(p) for p in passages(held_out)}
        assert len(train) <= (1 - share) * len(text) < len(train) + 3000


def test_split_by_hand() -> None:
    text = "one\n\ntwo\n\nthree\n\n  two\n\nfour\n\n"
    assert hold_out_text(text, 0.5) == ("one\n\ntwo\n\n", "three\n\nfour\n\n")
    assert hold_out_text(text, 0.0) == (text, "")
    assert hold_out_text("one passage", 0.5) == ("one passage", ""), "there is always something to train on"


def test_nothing_leaks_between_files() -> None:
    a, b = hold_out_texts(["one\n\ntwo\n\n", "two\n\nthree\n\n"], 0.5)
    assert (a, b) == (("one\n\n", ""), ("two\n\n", "three\n\n")), "`two` is in the training part of the second file"


def test_tokenizer_sees_only_the_training_part() -> None:
    text = "abc " * 500 + "\n\n" + "xyzzy" * 30 + "\n\n"
    corpus = Corpus.of(text, vocab=300, held_out=0.05)
    merged = [t for t in corpus.tokenizer.core.get_vocab() if "xy" in t]
    assert merged == []


def test_topics_are_english_about_python() -> None:
    text = python_topics()
    assert len(text) > 300_000
    assert text.startswith('The "assert" statement\n')
    assert text == python_topics()


# -- corpus ----------------------------------------------------------------------------------------------------


def test_ids_are_those_of_the_parts(tokenizer: Tokenizer) -> None:
    train, held_out = hold_out_text(TEXT)
    corpus = Corpus.of(TEXT, tokenizer)
    assert corpus.train.tolist() == [*encode_plain(tokenizer, train), 0]
    assert corpus.held_out.tolist() == [*encode_plain(tokenizer, held_out), 0]
    assert corpus.train.dtype == np.uint16
    assert corpus.vocab == tokenizer.size
    several = Corpus.of([TEXT, "another text " * 9 + "\n\nits end\n\n"], tokenizer, held_out=0.2)
    assert (several.train == 0).sum() == 2, "every text ends with the end token"


def test_saved_corpus_is_mapped_and_equal(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    corpus = Corpus.read([tmp_path / "a.txt"], vocab=300, folder=tmp_path / "corpus")
    assert isinstance(corpus.train, np.memmap)
    again, memory = Corpus.open(tmp_path / "corpus"), Corpus.of(TEXT, vocab=300)
    for other in (again, memory):
        assert np.array_equal(other.train, corpus.train)
        assert np.array_equal(other.held_out, corpus.held_out)
        assert other.tokenizer.encode("square") == corpus.tokenizer.encode("square")
    assert not list((tmp_path / "corpus").glob("*.tmp"))


def test_damaged_corpus(tmp_path: Path) -> None:
    Corpus.of(TEXT, vocab=300, folder=tmp_path)
    size = (tmp_path / "train.bin").stat().st_size
    (tmp_path / "train.bin").write_bytes((tmp_path / "train.bin").read_bytes()[:-1])
    with pytest.raises(CorpusError, match=f"train.bin: has {size - 1} bytes, expected {size}"):
        Corpus.open(tmp_path)
    (tmp_path / "train.bin").unlink()
    with pytest.raises(CorpusError, match=r"train.bin: is missing"):
        Corpus.open(tmp_path)
    (tmp_path / "corpus.json").write_text('{"dtype": "float64", "train": 1, "held_out": 1}')
    with pytest.raises(CorpusError, match="describes no corpus"):
        Corpus.open(tmp_path)


@pytest.mark.parametrize("text", ["", " \n\n ", []])
def test_no_text(text: str | list[str]) -> None:
    with pytest.raises(CorpusError, match="nothing but white space"):
        Corpus.of(text)


def test_a_file_without_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(CorpusError, match=r"blank\.txt: 1 texts hold nothing but white space"):
        Corpus.read(tmp_path / "blank.txt")


def test_share_out_of_range() -> None:
    with pytest.raises(CorpusError, match=r"held-out share is 1\.0"):
        Corpus.of(TEXT, held_out=1.0)


# -- batches ---------------------------------------------------------------------------------------------------


def numbers(count: int, held_out: int = 0) -> Corpus:
    """A corpus whose ids are their own places."""
    return Corpus(train_tokenizer("x", 257), np.arange(count, dtype=np.uint16), np.arange(held_out, dtype=np.uint16))


def test_batches_are_windows_with_their_successors() -> None:
    corpus = numbers(1000)
    batch = next(corpus.batches(4, 16, seed=1))
    assert set(batch) == {"input_ids", "attention_mask", "position_ids", "labels"}
    assert {(v.shape, v.dtype.name) for v in batch.values()} == {((4, 16), "int64")}
    assert np.array_equal(batch["labels"], batch["input_ids"] + 1)
    assert np.array_equal(np.diff(batch["input_ids"]), np.ones((4, 15)))
    assert (batch["position_ids"] == np.arange(16)).all()
    assert (batch["attention_mask"] == 1).all()


def test_a_pass_covers_the_text_once_and_the_next_is_cut_elsewhere() -> None:
    corpus = numbers(1000)
    per_pass = corpus.windows(16) - 1
    assert per_pass == 61
    starts = [int(b["input_ids"][0, 0]) for b in itertools.islice(corpus.batches(1, 16, seed=5), 3 * per_pass)]
    cuts = []
    for i in range(3):
        mine = starts[i * per_pass : (i + 1) * per_pass]
        assert sorted(mine) == list(range(min(mine), min(mine) + 16 * per_pass, 16)), "windows do not overlap"
        assert max(mine) + 16 <= 999
        cuts.append(min(mine))
    assert len(set(cuts)) == 3
    assert starts[:per_pass] != sorted(starts[:per_pass])


def test_order_depends_on_the_seed_and_can_be_entered_anywhere() -> None:
    corpus = numbers(500)
    first = list(itertools.islice(corpus.batches(3, 8, seed=2), 60))
    again = list(itertools.islice(corpus.batches(3, 8, seed=2, start=41), 19))
    for a, b in zip(first[41:], again, strict=True):
        assert np.array_equal(a["input_ids"], b["input_ids"])
    other = next(corpus.batches(3, 8, seed=3))
    assert not np.array_equal(first[0]["input_ids"], other["input_ids"])


@pytest.mark.parametrize("count", [2, 33, 40, 48, 49])
def test_held_out_counts_every_token_once(count: int) -> None:
    batches = list(numbers(50, count).held_out_batches(2, 16))
    labels = np.concatenate([b["labels"].ravel() for b in batches])
    assert labels[labels >= 0].tolist() == list(range(1, count))
    assert set(labels[labels < 0].tolist()) <= {-100}
    for b in batches:
        seen = b["attention_mask"] == 1
        assert (b["labels"][b["labels"] >= 0] == b["input_ids"][b["labels"] >= 0] + 1).all()
        assert (np.diff(b["attention_mask"]) <= 0).all(), "padding is on the right"
        assert (b["labels"][~seen] == -100).all()


def test_shortest_text_that_gives_a_batch() -> None:
    assert next(numbers(17).batches(2, 16))["input_ids"].shape == (2, 16)
    with pytest.raises(CorpusError, match=r"the train part has 16 tokens, fewer than 16 \+ 1"):
        next(numbers(16).batches(2, 16))
    with pytest.raises(CorpusError, match="the held-out part has 1 tokens"):
        next(numbers(16, 1).held_out_batches(2, 16))
    with pytest.raises(CorpusError, match="no part is called 'heldout', did you mean 'held_out'"):
        numbers(16).windows(4, "heldout")


def test_padding_in_a_batch() -> None:
    batch = make_batch(np.array([[3, 4, 5, -1, -1]]))
    assert batch["input_ids"].tolist() == [[3, 4, 5, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0]]
    assert batch["labels"].tolist() == [[4, 5, -100, -100]]
