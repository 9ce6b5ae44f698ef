"""The tokenizer inside a GGUF file, as a `tokenizers.Tokenizer` that gives the same ids as llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from ..ir.errors import ConfigError, did_you_mean
from .chat import chat_templates
from .entries import Entries, Note
from .gguf_ends import FILL, control, ends, shown
from .gguf_splits import SPLITS
from .tokenizer import Tokenizer

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 3, 4, 5, 6
_SPACE = "\u2581"
_DEFAULTS = {"llama": {"bos": 1, "eos": 2, "unknown": 0}}
"""Ids by kind of vocabulary where the file names none, as llama.cpp has them."""
_FEW = ("bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "mask", "cls", *FILL)
_NOTED = {
    **dict.fromkeys(("fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id", "prefix_token_id", "suffix_token_id",
                     "middle_token_id"), "marks around a hole in code, which a caller puts into the prompt"),
    "scores": "a byte-level vocabulary merges by rank",
    "merges": "a SentencePiece vocabulary merges by score",
    "pre": "a SentencePiece vocabulary is not split before merging",
    "add_space_prefix": "a byte-level vocabulary puts no space before a text",
    "remove_extra_whitespaces": "read for vocabularies of kind t5 only",
    "token_type_count": "read for vocabularies of kind bert only",
    "precompiled_charsmap": "read for vocabularies of kind t5 only",
    "normalizer.lowercase": "read for vocabularies of kind bert only",
    "normalizer.strip_accents": "read for vocabularies of kind bert only",
}  # fmt: skip
_MARKS = "combining marks stay with their letters, as in the models' own tokenizer.json; llama.cpp has a simpler rule"
_TITLE = "has a tokenizer that cannot be followed"
_TEMPLATES = "tokenizer.chat_template"


class _Vocabulary:
    """The `tokenizer.*` metadata, checked. Raises ConfigError naming the file."""

    def __init__(self, metadata: Mapping[str, Any], place: str) -> None:
        self.metadata, self.place = metadata, place
        said = {k: v for k, v in metadata.items() if k.startswith("tokenizer.")}
        self.entries = Entries(said, place)
        self.model: str = self.get("model", str, "")
        self.tokens: list[str] = self.get("tokens", list, [])
        self.types: list[int] = list(self.get("token_type", list, [_NORMAL] * len(self.tokens)))
        if not self.tokens or len(self.types) != len(self.tokens):
            raise self.error(f"has {len(self.tokens)} tokens and {len(self.types)} token types")
        self.ids = {t: i for i, t in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            seen = next(t for i, t in enumerate(self.tokens) if self.ids[t] != i)
            raise self.error(f"has the token {seen!r} twice")
        named = {name: self.ids[t] for name in _FEW if (t := self.token(name)) is not None}
        self.ends = ends(self.ids, named)
        for text in control(self.ids, self.ends):
            self.types[self.ids[text]] = _CONTROL
        for text in shown(self.ids, self.ends):
            if self.ids[text] not in named.values():
                self.types[self.ids[text]] = _USER_DEFINED

    def error(self, what: str, hint: str = "") -> ConfigError:
        return ConfigError(f"the tokenizer of this file {what}", place=self.place, hint=hint)

    def get(self, key: str, kind: type[Any], default: Any = None) -> Any:
        found = self.entries.use(f"tokenizer.ggml.{key}", default)
        if found is not default and not isinstance(found, kind):
            raise self.error(f"has {key} = {str(found)[:40]!r}, expected {kind.__name__}")
        return found

    def token(self, name: str) -> str | None:
        """The token that `<name>_token_id` points to."""
        id: int | None = self.get(f"{name}_token_id", int)
        if id is not None and not 0 <= id < len(self.tokens):
            raise self.error(f"has {name}_token_id {id}, but {len(self.tokens)} tokens")
        if id is None:
            default = _DEFAULTS.get(self.model, {}).get(name)
            id = default if default is not None and default < len(self.tokens) else None
        return None if id is None else self.tokens[id]

    def notes(self) -> tuple[Note, ...]:
        """What the file says that changes nothing here. Raises ConfigError for what cannot be followed."""
        prefix = "tokenizer.ggml."
        for key in ("add_sep_token", "suppress_tokens"):
            if self.metadata.get(prefix + key):
                self.entries.refuse(prefix + key, "it is not supported")
            self.entries.note(prefix + key, "it is off")
        for key, why in _NOTED.items():
            self.entries.note(prefix + key, why)
        for key in self.entries.left:
            self.entries.note(key, "llama.cpp does not read it")
        notes = self.entries.close(title=_TITLE)
        pre: Any = self.metadata.get(f"{prefix}pre")
        return (*notes, Note(self.place, f"{prefix}pre", pre, _MARKS)) if pre in SPLITS and SPLITS[pre].marks else notes


def gguf_tokenizer(metadata: Mapping[str, Any], place: str = "") -> Tokenizer:
    """Build the tokenizer that GGUF metadata describes. Raises ConfigError for a kind that is not supported."""
    v = _Vocabulary(metadata, place)
    if v.model == "gpt2":
        core, bos = _byte_level(v)
    elif v.model == "llama":
        core, bos = _sentencepiece(v), True
    else:
        raise v.error(f"is of kind {v.model!r}", hint="kinds gpt2 and llama are supported")
    _add_special(v, core, bos)
    settings = _settings(v)
    return Tokenizer(core, settings, v.ends, v.notes())


def _byte_level(v: _Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    pre = v.get("pre", str, "default")
    if pre not in SPLITS:
        known = ", ".join(SPLITS)
        raise v.error(f"splits text by the rule {pre!r}{did_you_mean(pre, SPLITS)}", f"known rules: {known}")
    merges = [tuple(m.split(" ")) for m in v.get("merges", list, [])]
    _check_merges(v, merges)
    split = SPLITS[pre]
    core = tokenizers.Tokenizer(models.BPE(vocab=v.ids, merges=merges, ignore_merges=split.whole))
    splits = [pre_tokenizers.Split(Regex(r), "isolated") for r in split.rules]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    core.decoder = decoders.ByteLevel()
    return core, split.bos


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
    usable = {t for t, kind in zip(v.tokens, v.types, strict=True) if kind in (_NORMAL, _UNUSED)}
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
        "mask_token": "mask",
        "cls_token": "cls",
        "eot_token": "eot",
        "eom_token": "eom",
    }
    found: dict[str, Any] = {key: v.token(name) for key, name in names.items()}
    found["chat_template"] = _templates(v)
    architecture = v.metadata.get("general.architecture")
    found["model_max_length"] = v.metadata.get(f"{architecture}.context_length")
    return {k: x for k, x in found.items() if x is not None}


def _templates(v: _Vocabulary) -> Any:
    """The chat template, or several by name: tokenizer.chat_template.NAME for each NAME of tokenizer.chat_templates."""
    v.entries.use("tokenizer.chat_templates")
    default = v.entries.use(_TEMPLATES)
    named = {
        k.removeprefix(f"{_TEMPLATES}."): v.entries.use(k) for k in v.entries.left if k.startswith(f"{_TEMPLATES}.")
    }
    found = chat_templates({**({"default": default} if default is not None else {}), **named} or None, v.place)
    return found["default"] if [*found] == ["default"] else found or None
