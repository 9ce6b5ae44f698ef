"""The tokenizer inside a GGUF file, as a `tokenizers.Tokenizer` that gives the same ids as llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from ..ir.errors import ConfigError, did_you_mean
from .tokenizer import Tokenizer

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SINGLE_DIGITS = (r"\p{N}", _GPT2)
_QWEN2 = (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),)
_SPLITS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _SINGLE_DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen"), _QWEN2),
}
"""Regular expressions by `tokenizer.ggml.pre`; each splits the pieces that the one before it left."""
_WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3"}
"""Kinds that take a word of the vocabulary as it is, before any merge, and start a text with BOS."""

_NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 3, 4, 6
_SPACE = "\u2581"


class _Vocabulary:
    """The `tokenizer.ggml.*` metadata, checked. Raises ConfigError naming the file."""

    def __init__(self, metadata: Mapping[str, Any], place: str) -> None:
        self.metadata, self.place = metadata, place
        self.tokens: list[str] = self.get("tokens", list, [])
        self.types: list[int] = self.get("token_type", list, [_NORMAL] * len(self.tokens))
        if not self.tokens or len(self.types) != len(self.tokens):
            raise self.error(f"has {len(self.tokens)} tokens and {len(self.types)} token types")
        self.ids = {t: i for i, t in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            seen = next(t for i, t in enumerate(self.tokens) if self.ids[t] != i)
            raise self.error(f"has the token {seen!r} twice")

    def error(self, what: str, hint: str = "") -> ConfigError:
        return ConfigError(f"the tokenizer of this file {what}", place=self.place, hint=hint)

    def get(self, key: str, kind: type[Any], default: Any = None) -> Any:
        found = self.metadata.get(f"tokenizer.ggml.{key}", default)
        if found is not default and not isinstance(found, kind):
            raise self.error(f"has {key} = {str(found)[:40]!r}, expected {kind.__name__}")
        return found

    def token(self, name: str) -> str | None:
        """The token that `<name>_token_id` points to."""
        id: int | None = self.get(f"{name}_token_id", int)
        if id is not None and not 0 <= id < len(self.tokens):
            raise self.error(f"has {name}_token_id {id}, but {len(self.tokens)} tokens")
        return None if id is None else self.tokens[id]


def gguf_tokenizer(metadata: Mapping[str, Any], place: str = "") -> Tokenizer:
    """Build the tokenizer that GGUF metadata describes. Raises ConfigError for a kind that is not supported."""
    v = _Vocabulary(metadata, place)
    model = v.get("model", str)
    if model == "gpt2":
        core, bos = _byte_level(v)
    elif model == "llama":
        core, bos = _sentencepiece(v), True
    else:
        raise v.error(f"is of kind {model!r}", hint="kinds gpt2 and llama are supported")
    _add_special(v, core, bos)
    ends = [v.ids[t] for t in map(v.token, ("eos", "eot")) if t is not None]
    return Tokenizer(core, _settings(v), ends)


def _byte_level(v: _Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    pre = v.get("pre", str, "default")
    if pre not in _SPLITS:
        known = ", ".join(_SPLITS)
        raise v.error(f"splits text by the rule {pre!r}{did_you_mean(pre, _SPLITS)}", f"known rules: {known}")
    merges = [tuple(m.split(" ")) for m in v.get("merges", list, [])]
    _check_merges(v, merges)
    whole = pre in _WHOLE_WORDS
    core = tokenizers.Tokenizer(models.BPE(vocab=v.ids, merges=merges, ignore_merges=whole))
    splits = [pre_tokenizers.Split(Regex(r), "isolated") for r in _SPLITS[pre]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    core.decoder = decoders.ByteLevel()
    return core, whole


def _check_merges(v: _Vocabulary, merges: list[tuple[str, ...]]) -> None:
    for i, pair in enumerate(merges):
        if len(pair) != 2 or any(part not in v.ids for part in (*pair, "".join(pair))):
            raise v.error(f"has merge {i} = {' '.join(pair)!r}, which is not of two tokens that make a third")


def _sentencepiece(v: _Vocabulary) -> tokenizers.Tokenizer:
    scores: list[float] = v.get("scores", list, [])
    if len(scores) != len(v.tokens):
        raise v.error(f"has {len(v.tokens)} tokens and {len(scores)} scores")
    bytes_known = any(t == _BYTE for t in v.types)
    unknown = v.token("unknown")
    core = tokenizers.Tokenizer(
        models.BPE(vocab=v.ids, merges=_merges(v, scores), unk_token=unknown, fuse_unk=True, byte_fallback=bytes_known)
    )
    prefix = v.get("add_space_prefix", bool, True)
    replace = normalizers.Replace(" ", _SPACE)
    core.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace]) if prefix else replace
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    core.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return core


def _merges(v: _Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two others, best score first: SentencePiece merges by score of the result."""
    usable = {t for t, kind in zip(v.tokens, v.types, strict=True) if kind == _NORMAL}
    found: list[tuple[float, int, int]] = []
    for i, token in enumerate(v.tokens):
        if token in usable:
            cuts = (k for k in range(1, len(token)) if token[:k] in usable and token[k:] in usable)
            found.extend((-scores[i], i, k) for k in cuts)
    found.sort()
    return [(v.tokens[i][:k], v.tokens[i][k:]) for _, i, k in found]


def _add_special(v: _Vocabulary, core: tokenizers.Tokenizer, bos_by_default: bool) -> None:
    of_kind = {kind: [t for t, k in zip(v.tokens, v.types, strict=True) if k == kind] for kind in set(v.types)}
    added: Any = core  # its annotation of the two methods is a bare list
    added.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in of_kind.get(_CONTROL, [])])
    # They are looked for in the text as it is: converters write runs of spaces as spaces, not as the mark for them.
    added.add_tokens([AddedToken(t, special=False, normalized=False) for t in of_kind.get(_USER_DEFINED, [])])
    bos, eos = v.token("bos"), v.token("eos")
    before = [bos] if bos is not None and v.get("add_bos_token", bool, bos_by_default) else []
    after = [eos] if eos is not None and v.get("add_eos_token", bool, False) else []
    if before or after:
        core.post_processor = TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *(f"{t}:1" for t in before), "$B:1", *(f"{t}:1" for t in after)],
            special_tokens=[(t, v.ids[t]) for t in dict.fromkeys([*before, *after])],
        )


def _settings(v: _Vocabulary) -> dict[str, Any]:
    names = {
        "bos_token": "bos",
        "eos_token": "eos",
        "unk_token": "unknown",
        "pad_token": "padding",
        "sep_token": "seperator",
    }
    found: dict[str, Any] = {key: v.token(name) for key, name in names.items()}
    found["chat_template"] = v.metadata.get("tokenizer.chat_template")
    architecture = v.metadata.get("general.architecture")
    found["model_max_length"] = v.metadata.get(f"{architecture}.context_length")
    return {k: x for k, x in found.items() if x is not None}
