"""Tokenizers: any bytes come back, special tokens per task, saved and loaded, and what WordPiece loses."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monograph.data import tokenizers
from monograph.data.byte_level import encode_plain, train_tokenizer
from monograph.data.errors import DataError
from monograph.frontends.tokenizer import Tokenizer
from monograph.ir.errors import ConfigError
from monograph.training.corpus import python_topics

LOSSLESS = ("byte-bpe", "unigram")
ODD = [
    "",
    " ",
    "  two  spaces \n\n\ttab\r\n",
    "\u2581 the stand-in for a space \u2581\u2581",
    "\u0120 and \u010a of byte-level vocabularies",
    "<0x41><0xFF> <unk> <|endoftext|> [CLS] </s><s> <pad> <|im_start|>",
    "\u65e5\u672c\u8a9e \U0001f642 e\u0301 \x00\x7f\u200d",
    "caf\u00e9 " * 3,
]


@functools.cache
def trained(kind: str, task: str) -> Tokenizer:
    return tokenizers.train(kind, [python_topics()[:60_000]], 700, task)


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=80))
def test_any_bytes_come_back(kind: str, data: bytes) -> None:
    tokenizer = trained(kind, "causal-lm")
    assert tokenizers.lossless(tokenizer)
    assert tokenizers.decode_bytes(tokenizer, tokenizers.encode_bytes(tokenizer, data)) == data


@pytest.mark.parametrize("kind", LOSSLESS)
@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back(kind: str, text: str) -> None:
    tokenizer = trained(kind, "causal-lm")
    assert tokenizer.decode(encode_plain(tokenizer, text), skip_special=False) == text


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("task", ["causal-lm", "masked-lm"])
@pytest.mark.parametrize("text", ODD)
def test_odd_texts_come_back_and_never_become_special(kind: str, task: str, text: str) -> None:
    tokenizer = trained(kind, task)
    ids = tokenizers.encode_bytes(tokenizer, text.encode())
    assert tokenizers.decode_bytes(tokenizer, ids) == text.encode()
    special = {tokenizer.core.token_to_id(t) for t in tokenizers.TASKS[task].tokens.values()}
    assert not special & set(ids)
    if kind == "unigram" and text.isascii():
        names = {tokenizer.core.token_to_id(f"<0x{b:02X}>") for b in range(0x20, 0x7F)}
        assert not names & set(ids), "ASCII is spelt with characters, never with byte tokens"


@pytest.mark.parametrize("task", list(tokenizers.TASKS))
@pytest.mark.parametrize("kind", list(tokenizers.KINDS))
def test_special_tokens_of_each_task(kind: str, task: str, tmp_path: Path) -> None:
    tokenizer = trained(kind, task)
    expected = list(tokenizers.TASKS[task].tokens.values())
    assert [tokenizer.core.token_to_id(t) for t in expected] == list(range(len(expected)))
    assert tokenizer.size <= 700
    end = tokenizers.document_end(tokenizer)
    assert end == tokenizer.core.token_to_id(tokenizers.TASKS[task].tokens[tokenizers.TASKS[task].ends])
    text = "The value of an object."
    plain = encode_plain(tokenizer, text)
    framed = {"masked-lm": [2, *plain, 3], "seq2seq": [*plain, 2]}.get(task, plain)
    assert tokenizer.encode(text) == framed
    tokenizer.save(tmp_path / "t")
    again = Tokenizer.open(tmp_path / "t")
    assert again.encode(text) == framed and again.size == tokenizer.size
    assert tokenizers.document_end(again) == end
    assert (again.pad_id, again.mask_id, again.bos_id, again.eos_ids) == (
        tokenizer.pad_id,
        tokenizer.mask_id,
        tokenizer.bos_id,
        tokenizer.eos_ids,
    )
    assert tokenizers.lossless(again) == (kind in LOSSLESS)
    if task == "masked-lm":
        assert again.types("a", "b").count(1) == len(encode_plain(again, "b")) + 1
        assert again.mask_id == 4


def test_chat_template() -> None:
    tokenizer = trained("byte-bpe", "chat")
    prompt = tokenizer.chat([{"role": "user", "content": "Hi"}])
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(prompt, add_special=False)
    assert ids[0] == 1 and ids.count(0) == 1


def test_byte_bpe_for_causal_lm_is_the_tokenizer_of_the_first_form() -> None:
    text = python_topics()[:60_000]
    assert trained("byte-bpe", "causal-lm").core.to_str() == train_tokenizer([text], 700).core.to_str()


def test_training_byte_bpe_repeats_exactly() -> None:
    found = {tokenizers.train("byte-bpe", [python_topics()[:60_000]], 700).core.to_str() for _ in range(3)}
    assert found == {trained("byte-bpe", "causal-lm").core.to_str()}


def test_wordpiece_keeps_words_and_says_what_it_loses() -> None:
    tokenizer = trained("wordpiece", "masked-lm")
    assert not tokenizers.lossless(tokenizer)
    words = "The value of the object is called"
    assert tokenizer.decode(encode_plain(tokenizer, words)) == words
    assert tokenizer.decode(encode_plain(tokenizer, "The  value\nof")) == "The value of"
    assert encode_plain(tokenizer, "\U0001f642") == [tokenizer.core.token_to_id("[UNK]")]
    with pytest.raises(DataError, match=r"WordPiece .* cannot hold any bytes"):
        tokenizers.encode_bytes(tokenizer, b"\xff")
    with pytest.raises(DataError, match="cannot hold any bytes"):
        tokenizers.decode_bytes(tokenizer, [5])


def test_errors() -> None:
    with pytest.raises(ConfigError, match="did you mean 'unigram'"):
        tokenizers.train("unigramm", ["a"])
    with pytest.raises(ConfigError, match="did you mean 'seq2seq'"):
        tokenizers.train("unigram", ["a"], 700, "seq2sec")
    for kind, least in (("byte-bpe", 257), ("unigram", 355), ("wordpiece", 3)):
        with pytest.raises(ConfigError, match=f"at least {least}"):
            tokenizers.train(kind, ["a"], least - 1)
    with pytest.raises(DataError, match="id 9999 is not in the vocabulary of 700"):
        tokenizers.decode_bytes(trained("unigram", "causal-lm"), [9999])
