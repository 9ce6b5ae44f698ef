"""Train byte-level BPE, Unigram and WordPiece tokenizers with the special tokens of a task; bytes in, bytes out.

| kind      | any text comes back | any bytes come back | how |
|-----------|---------------------|---------------------|-----|
| byte-bpe  | yes                 | yes                 | the 256 bytes are tokens |
| unigram   | yes                 | yes                 | white space is kept as it is; what is not in the vocabulary falls back to tokens <0x00> to <0xFF> |
| wordpiece | no                  | no                  | white space and accents-as-typed are kept only as words; unknown words become [UNK] |

Training byte-bpe gives the same result every time. The Unigram and WordPiece trainers of `tokenizers` do not (they
walk tables in random order), so what must be repeated exactly keeps the trained tokenizer.
"""  # noqa: E501

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from ..frontends.tokenizer import Tokenizer
from ..ir.errors import ConfigError, did_you_mean
from . import byte_level
from .byte_level import END, encode_plain
from .errors import DataError
from .tables import is_table

_ASCII = ["\t", "\n", *map(chr, range(0x20, 0x7F))]
_BYTES = [f"<0x{b:02X}>" for b in range(256)]
_PIECES = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_NEVER = -1e6
"""Log-probability of a byte token: no way through a text takes one while characters of the vocabulary would do."""
_LONGEST_WORD = 100


@dataclass(frozen=True)
class Specials:
    """The special tokens of a task by their role, in the order of their ids.

    ends: role of the token that closes a document in a shard. frame: what `encode` puts around one text and two.
    """

    tokens: dict[str, str]
    ends: str
    frame: tuple[str, str] | None = None
    chat_template: str | None = None


_CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TASKS: dict[str, Specials] = {
    "causal-lm": Specials({"eos_token": END}, "eos_token"),
    "masked-lm": Specials(
        {
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
            "cls_token": "[CLS]",
            "sep_token": "[SEP]",
            "mask_token": "[MASK]",
        },
        "sep_token",
        ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    ),
    "seq2seq": Specials(
        {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}, "eos_token", ("$A </s>", "$A </s> $B </s>")
    ),
    "chat": Specials({"eos_token": "<|im_end|>", "start": "<|im_start|>", "pad_token": END}, "eos_token", None, _CHAT),
}
"""Special tokens per task: what its models and their clients expect."""


def train(kind: str, texts: Iterable[str], vocab: int = 32_000, task: str = "causal-lm") -> Tokenizer:
    """A tokenizer of `kind` (byte-bpe, unigram, wordpiece) with at most `vocab` entries, learned from `texts`.

    Raises ConfigError for an unknown kind or task, and when `vocab` has no room for what must be in it.
    """
    if kind not in KINDS:
        raise ConfigError(f"no tokenizer is called {kind!r}{did_you_mean(kind, KINDS)}")
    if task not in TASKS:
        raise ConfigError(f"no task is called {task!r}{did_you_mean(task, TASKS)}")
    specials = TASKS[task]
    core = KINDS[kind](texts, vocab, list(specials.tokens.values()))
    if specials.frame is not None:
        names = list(specials.tokens.values())
        single, pair = specials.frame
        core.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(name, core.token_to_id(name)) for name in names]
        )
    return Tokenizer(core, _settings(specials, kind))


def document_end(tokenizer: Tokenizer) -> int | None:
    """The id that closes a document: end of text, else the separator, else None."""
    if tokenizer.eos_id is not None:
        return tokenizer.eos_id
    name: Any = tokenizer.settings.get("sep_token")
    name = name.get("content") if is_table(name) else name
    return tokenizer.core.token_to_id(name) if isinstance(name, str) else None


def encode_bytes(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """Ids of any byte string. Raises DataError for a tokenizer that has no tokens for single bytes."""
    if not _falls_back(tokenizer):
        _check_byte_level(tokenizer)
        return byte_level.encode_bytes(tokenizer, data)
    known = tokenizer.core.get_vocab(with_added_tokens=True)
    ids: list[int] = []
    for piece in re.split("([\udc80-\udcff])", data.decode("utf-8", "surrogateescape")):
        if re.fullmatch("[\udc80-\udcff]", piece):
            ids.append(known[_BYTES[ord(piece) - 0xDC00]])
        elif piece:
            ids += encode_plain(tokenizer, piece)
    return ids


def decode_bytes(tokenizer: Tokenizer, ids: Iterable[int]) -> bytes:
    """The bytes behind `ids`; special tokens give the bytes of their names. Raises DataError as `encode_bytes`."""
    if not _falls_back(tokenizer):
        _check_byte_level(tokenizer)
        return byte_level.decode_bytes(tokenizer, ids)
    data = bytearray()
    known = {name: value for value, name in enumerate(_BYTES)}
    for i in ids:
        token = tokenizer.core.id_to_token(i)
        if token is None:
            raise DataError(f"id {i} is not in the vocabulary of {tokenizer.size}")
        data += bytes([known[token]]) if token in known else token.encode()
    return bytes(data)


def lossless(tokenizer: Tokenizer) -> bool:
    """Whether any bytes come back from their ids."""
    return _falls_back(tokenizer) or isinstance(tokenizer.core.pre_tokenizer, pre_tokenizers.ByteLevel)


def _byte_bpe(texts: Iterable[str], vocab: int, specials: list[str]) -> tokenizers.Tokenizer:
    """Byte-pair encoding over UTF-8 bytes (Sennrich et al. 2016; Radford et al. 2019)."""
    _room("byte-bpe", vocab, 256 + len(specials), "256 bytes", specials)
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return core


def _unigram(texts: Iterable[str], vocab: int, specials: list[str]) -> tokenizers.Tokenizer:
    """A unigram language model over pieces of words (Kudo 2018), with byte fallback.

    Spaces stay spaces: the usual stand-in for them could not be told from the same character in the text. All of
    ASCII is in the vocabulary, so that a text that spells the name of a byte token is never taken for it.
    """
    must = [*specials, "<unk>", *_BYTES]
    _room("unigram", vocab, len(must) + len(_ASCII), "256 bytes, ASCII, <unk>", specials)
    learner = tokenizers.Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), "isolated")
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab - len(must) + 1,
        special_tokens=["<unk>"],
        unk_token="<unk>",
        initial_alphabet=_ASCII,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = [(piece, score) for piece, score in _pieces(learner) if piece not in set(must)]
    learned = learned[: vocab - len(must)]
    entries = [(name, 0.0) for name in [*specials, "<unk>"]] + [(b, _NEVER) for b in _BYTES] + learned
    # Not the one that learned: it would go on giving <unk> the id it had while learning, that of another token here.
    core = tokenizers.Tokenizer(models.Unigram(entries, unk_id=len(specials), byte_fallback=True))
    core.pre_tokenizer = learner.pre_tokenizer
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    special = [AddedToken(name, special=True, normalized=False) for name in [*specials, "<unk>"]]
    cast(Any, core).add_special_tokens(special)
    return core


def _wordpiece(texts: Iterable[str], vocab: int, specials: list[str]) -> tokenizers.Tokenizer:
    """Longest pieces first within words (Schuster & Nakajima 2012; Devlin et al. 2019), case and accents kept."""
    specials = specials if "[UNK]" in specials else [*specials, "[UNK]"]
    _room("wordpiece", vocab, len(specials) + 1, "one character", specials)
    core = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=_LONGEST_WORD))
    core.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=False, lowercase=False
    )
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab, special_tokens=specials, continuing_subword_prefix="##", show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    return core


KINDS: dict[str, Callable[[Iterable[str], int, list[str]], tokenizers.Tokenizer]] = {
    "byte-bpe": _byte_bpe,
    "unigram": _unigram,
    "wordpiece": _wordpiece,
}


def _settings(specials: Specials, kind: str) -> dict[str, Any]:
    named = {role: token for role, token in specials.tokens.items() if role.endswith("_token")}
    if "unk_token" not in named and kind != "byte-bpe":
        named["unk_token"] = "<unk>" if kind == "unigram" else "[UNK]"
    others = [token for role, token in specials.tokens.items() if not role.endswith("_token")]
    settings: dict[str, Any] = dict(named)
    if others:
        settings["additional_special_tokens"] = others
    if specials.chat_template is not None:
        settings["chat_template"] = specials.chat_template
    return settings


def _room(kind: str, vocab: int, needed: int, what: str, specials: list[str]) -> None:
    if vocab < needed:
        raise ConfigError(f"vocab is {vocab}, but {kind} needs at least {needed}: {what} and {', '.join(specials)}")


def _pieces(core: tokenizers.Tokenizer) -> list[tuple[str, float]]:
    """Pieces of a trained Unigram model with their log-probabilities, most likely first after the alphabet."""
    found = json.loads(core.to_str())["model"]["vocab"]
    single = [(p, s) for p, s in found if len(p) == 1]
    return single + [(p, s) for p, s in found if len(p) > 1]


def _falls_back(tokenizer: Tokenizer) -> bool:
    """Whether this is a Unigram tokenizer of this file: one with a stand-in for spaces would lose that character."""
    core = tokenizer.core
    as_typed = core.normalizer is None and isinstance(core.pre_tokenizer, pre_tokenizers.Split)
    return as_typed and all(core.token_to_id(name) is not None for name in _BYTES)


def _check_byte_level(tokenizer: Tokenizer) -> None:
    if not isinstance(tokenizer.core.pre_tokenizer, pre_tokenizers.ByteLevel):
        kind = type(tokenizer.core.model).__name__
        raise DataError(
            f"a {kind} tokenizer that has no tokens for single bytes cannot hold any bytes",
            hint="use byte-bpe or unigram",
        )
