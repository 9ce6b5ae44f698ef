"""Train a byte-level BPE tokenizer: every text, and every byte string, has an encoding."""

from __future__ import annotations

import re
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ..frontends.tokenizer import Tokenizer
from ..ir.errors import ConfigError
from .errors import CorpusError

END = "<|endoftext|>"
"""The special token that ends a text; its id is 0."""


def train_tokenizer(texts: str | Iterable[str], vocab: int = 2048) -> Tokenizer:
    """Byte-pair encoding over UTF-8 bytes, at most `vocab` entries, learned from `texts` (Sennrich et al. 2016).

    END and the 256 bytes are always in it, so nothing is unknown. Raises ConfigError if `vocab` has no room for them.
    """
    if vocab < 257:
        raise ConfigError(f"vocab is {vocab}, expected at least 257: 256 bytes and {END}")
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([texts] if isinstance(texts, str) else texts, trainer)
    return Tokenizer(core, {"eos_token": END})


def encode_plain(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text in which nothing is special: END written in it is encoded letter by letter, like any word."""
    return tokenizer.encode(text, add_special=False, literal=True)


def encode_bytes(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """Ids of any byte string; bytes that are not UTF-8 become single-byte tokens."""
    text = data.decode("utf-8", "surrogateescape")
    byte_ids = _byte_ids(tokenizer)
    ids: list[int] = []
    for piece in re.split("([\udc80-\udcff])", text):
        if re.fullmatch("[\udc80-\udcff]", piece):
            ids.append(byte_ids[ord(piece) - 0xDC00])
        elif piece:
            ids += encode_plain(tokenizer, piece)
    return ids


def decode_bytes(tokenizer: Tokenizer, ids: Iterable[int]) -> bytes:
    """The bytes behind `ids`, exactly; special tokens give the bytes of their names."""
    known = {c: i for i, c in enumerate(_alphabet())}
    specials = tokenizer.core.get_added_tokens_decoder()
    data = bytearray()
    for i in ids:
        token = tokenizer.core.id_to_token(i)
        if token is None:
            raise CorpusError(f"id {i} is not in the vocabulary of {tokenizer.size}")
        data += token.encode() if i in specials else bytes(known[c] for c in token)
    return bytes(data)


def _alphabet() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (Radford et al. 2019)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = iter(range(0x100, 0x200))
    return [chr(b) if b in shown else chr(next(rest)) for b in range(256)]


def _byte_ids(tokenizer: Tokenizer) -> list[int]:
    found = [tokenizer.core.token_to_id(c) for c in _alphabet()]
    missing = [i for i, token in enumerate(found) if token is None]
    if missing:
        raise CorpusError(f"the tokenizer is not byte-level: it has no token for byte {missing[0]:#04x}")
    return [i for i in found if i is not None]
