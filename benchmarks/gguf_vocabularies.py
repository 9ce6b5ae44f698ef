"""Small GGUF vocabularies made to be hard: merges that cross every border at which a rule may split a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
from monograph.frontends.gguf_splits import SPLITS
from tokenizers import pre_tokenizers

PIECES = (
    "12 123 1234 12345 1a a1 Ab aB ABc 's 'S it's 'll we'LL don't ... .. ., a. .a ,b $1 1. 1, #! !! \u65e5\u672c "
    "\u306e\u65e5 \u672c\u8a9e \ud55c\uad6d \u0e44\u0e17\u0e22 caf\u00e9 na\u00efve e\u0301 \u00c9t\u00e9 "
    "\u03b1\u03b2 \u0416\u0438 \U0001f44d\U0001f3fd \U0001f600 \u0931\u094d \u064a\u064f \u00b2\u00b3 \u2167 "
    "\uff01a \u3002\u65e5 </ //"
)
SPACED = (
    " 1", " a", "a ", " .", ". ", "  ", "   ", "    ", "\n\n", "\n\n\n", " \n", "\n ", "\t\t", "\t a", ".\n", "a\n",
    "1\n", "\na", "\n1", " \u65e5", "\u65e5 ", " '", "\r\n", "\r\n\r\n", "/\n", " \u00e9", "\u00a0a", " \u00a0",
)  # fmt: skip
TEXTS = (
    "<|im_end|> hello<end_of_turn>world hello </s> hi",
    "hello world caf\u00e9 12 \u65e5\u672c  hello\n\nworld",
    "It's 12345 apples, WE'LL see don't you? 'S 's it'S",
    "caf\u00e9 na\u00efve e\u0301t\u00e9 \u00c9t\u00e9 \u0416\u0438\u0437\u043d\u044c"
    " \u03b1\u03b2\u03b3 \U0001d518 \u1e9e",
    "\u65e5\u672c\u8a9e\u306e\u65e5 123\u65e5\u672c \ud55c\uad6d\uc5b4 \u0e44\u0e17\u0e22\u0e44\u0e17\u0e22"
    " \u4e2d\u6587\u3002\u65e5",
    "\U0001f44d\U0001f3fd\U0001f600 \u00b2\u00b3 \u2167 \u0931\u094d\u0931 \u064a\u064f \u0967\u0968\u0969",
    "  two   spaces\n\n\n    indented\t\ttabs \n a\r\n\r\nb \u00a0a  ",
    "x = a.b(1, 2);  // $100.50 #!end...\nif (a<=b) { /*!!*/ } </p>\n\n",
    "camelCase HTTPServer ABcDe aBCd 1a2b3c 1234567 12,345.67 1.\n1\n",
    " leading a trailing \n",
    "\n",
    '!a \uff01a ,b .a \'a "a" \u2018quoted\u2019 \u2026 \u00bfqu\u00e9? _under_score_ a_b',
)
ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]",
    "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<|fim_prefix|>", "<|im_start|>", "<|start|>", "<|channel|>", "<eot>", "<|End|>",
)  # fmt: skip
SCORED = (
    "he", "el", "ll", "lo", "hel", "llo", "hell", "ello", "hello", "\u2581he", "\u2581hello", "\u2581w", "wo", "or",
    "ld", "world", "\u2581world", "\u2581\u2581", "12", "\u258112", "caf", "\u2581caf", "\u65e5\u672c", "lo\u2581",
)  # fmt: skip


def letters() -> dict[int, str]:
    """GPT-2's letter for each byte: printable ones stand for themselves, the others follow 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def byte_level(pre: str, ends: tuple[str, ...] = ("<|end_of_text|>",), **changes: Any) -> dict[str, Any]:
    """Metadata of a byte-level vocabulary whose tokens are PIECES and SPACED, merged from left to right."""
    names = letters()
    tokens, merges = [*ends, *sorted(pre_tokenizers.ByteLevel.alphabet())], list[str]()
    for piece in (*PIECES.split(), *SPACED):
        word = [names[b] for b in piece.encode()]
        for i in range(1, len(word)):
            merge = f"{''.join(word[:i])} {word[i]}"
            if merge not in merges:
                merges.append(merge)
                tokens.append(merge.replace(" ", ""))
    tokens = list(dict.fromkeys(tokens))
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if i % 2 == 0 else 1 for i in range(len(ends))]
        + [1] * (len(tokens) - len(ends)),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        **changes,
    }


def scored(ends: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    """Metadata of a SentencePiece vocabulary with bytes, unused and user-defined tokens."""
    plain = sorted({c for piece in SCORED for c in piece} | {"a", "b", "."})
    words = [*plain, *[w for w in SCORED if len(w) > 1]]
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)], *words, "\n\n", "  ", *ends]
    types = [2, 3, 3, *[6] * 256, *[5 if w == "ello" else 1 for w in words], 4, 4, *[1 for _ in ends]]
    scores = [0.0] * 259 + [-float((7 * i) % 29) - 1 for i in range(len(words))] + [-1000.0] * (2 + len(ends))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        **changes,
    }


def write(path: Path, metadata: dict[str, Any]) -> None:
    """A GGUF file that has only a vocabulary and the sizes of a model."""
    writer = gguf.GGUFWriter(str(path), "llama")
    for key, number in (
        ("context_length", 64),
        ("embedding_length", 16),
        ("block_count", 1),
        ("feed_forward_length", 16),
    ):
        writer.add_uint32(f"llama.{key}", number)
    writer.add_uint32("llama.attention.head_count", 2)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def all_vocabularies() -> dict[str, dict[str, Any]]:
    """The vocabularies that are held against llama.cpp, by name."""
    harmony = ("<|endoftext|>", "<|return|>", "<|call|>", "<|end|>", "<|start|>", "<|message|>")
    other: dict[str, Any] = {"bos_token_id": 260, "eos_token_id": 259, "add_eos_token": True}
    some = {f"split {pre}": byte_level(pre) for pre in SPLITS}
    return {
        **some,
        "many ends": byte_level("gpt-2", ENDS),
        "harmony": byte_level("gpt-2", harmony),
        "eot and eom by key": byte_level(
            "gpt-2", ("a1b2", "<x>", "<y>"), **{"tokenizer.ggml.eot_token_id": 1, "tokenizer.ggml.eom_token_id": 2}
        ),
        "fill by key": byte_level("gpt-2", ("<z>", "<p>", "<|fim_pad|>"), **{"tokenizer.ggml.fim_pad_token_id": 1}),
        "scores": scored(),
        "scores, no prefix": scored() | {"tokenizer.ggml.add_space_prefix": False},
        "scores, ends": scored(("<|im_end|>", "<end_of_turn>", "[PAD]", "<eos>"), **{"tokenizer.ggml.eos_token_id": 2}),
        "scores, other ids": scored(("<a>", "<b>"), **{f"tokenizer.ggml.{k}": v for k, v in other.items()}),
    }
