"""How each kind of byte-level vocabulary in a GGUF file splits text before merging: facts by `tokenizer.ggml.pre`.

The rules are those of llama.cpp (src/llama-vocab.cpp, 2026-11), which are in turn those of the models' tokenizer.json.
"""

from __future__ import annotations

from dataclasses import dataclass

_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = rf"{_ENGLISH}|{_WORDS}|\p{{N}}{{1,3}}|{_MARKS}|{_SPACES}"
_QWEN2 = rf"{_ENGLISH}|{_WORDS}|\p{{N}}|{_MARKS}|{_SPACES}"
_QWEN35 = rf"{_ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
_ASCII_MARKS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    rf"{_ASCII_MARKS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_CASED = (
    r"[\p{Lu}\p{Ll}\p{Lt}&&[^\u2d00-\u2d2d\ua790-\ua7fa\uab30-\uab68"
    "\U00010570-\U000105bc\U00016e40-\U00016e7f\U0001d400-\U0001df1e]]"
)
_MARKS_OF_ASIA = r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_ASIA = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_NOT_LETTER = r"[^\r\n\p{L}\p{N}]?"
_CASES = rf"{_NOT_LETTER}{_UPPER}*{_LOWER}+|{_NOT_LETTER}{_UPPER}+{_LOWER}*"
_TEKKEN = rf"{_CASES}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT4O = (
    rf"{_NOT_LETTER}{_UPPER}*{_LOWER}+{_ENGLISH}?|{_NOT_LETTER}{_UPPER}+{_LOWER}*{_ENGLISH}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_BAILING = rf"'(?i:[sdmt]|ll|ve|re)|{_WORDS}|\p{{N}}|{_MARKS}|\s*[\r\n]|\s+(?!\S)|\s+"
_SEED = rf"{_ENGLISH}|{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_EXAONE_MOE = (
    rf"{_ENGLISH}|{_NOT_LETTER}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_WITHOUT_MARKS = r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"


@dataclass(frozen=True)
class Split:
    """rules: regular expressions, of which each splits the pieces that the one before it left. whole: a word of the
    vocabulary is taken as it is, before any merge. bos: a text starts with BOS unless the file says otherwise.
    marks: the models' own rule keeps combining marks with letters, where llama.cpp has a simpler one."""

    rules: tuple[str, ...]
    whole: bool = False
    bos: bool = False
    marks: bool = False


def _named(split: Split, *names: str) -> dict[str, Split]:
    return dict.fromkeys(names, split)


SPLITS: dict[str, Split] = {
    **_named(Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")), "default"),
    **_named(
        Split((_GPT2,)), "gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0",
        "mellum", "modern-bert", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4",
    ),
    **_named(
        Split((r"\p{N}", _GPT2)), "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b",
        "mellum2",
    ),
    **_named(
        Split((_LLAMA3,), whole=True, bos=True), "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral",
        "midm-2.0", "lfm2", "jina-v5-nano",
    ),
    **_named(Split((_LLAMA3,)), "dbrx", "smaug-bpe", "glm4", "chatglm-bpe"),
    **_named(
        Split((_QWEN2,)), "qwen2", "stablelm2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "hunyuan",
        "solar-open", "grok-2",
    ),
    "qwen35": Split((_QWEN35,)),
    "deepseek-llm": Split((r"[\r\n]", rf"\s?{_CASED}+", _MARKS_OF_ASIA, r"\s+$", _ASIA, r"\p{N}+")),
    "deepseek-coder": Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _ASIA, r"\p{N}")),
    **_named(Split(_DEEPSEEK3), "deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
    "falcon": Split((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    **_named(Split((_WITHOUT_MARKS,)), "bloom", "poro-chat", "gpt3-finnish"),
    "viking": Split((_WITHOUT_MARKS, r"\p{N}")),
    "tekken": Split((_TEKKEN,), whole=True, bos=True, marks=True),
    **_named(Split((_GPT4O,), marks=True), "gpt-4o", "llama4", "kanana2", "minimax-m2"),
    **_named(Split((_BAILING,)), "bailingmoe", "bailingmoe2", "llada-moe"),
    "seed-coder": Split((_SEED,)),
    "exaone-moe": Split((_EXAONE_MOE,)),
    "minicpm5": Split((r"\p{N}{1,3}", _LLAMA3.replace("{1,3}", "+")), whole=True),
}  # fmt: skip
