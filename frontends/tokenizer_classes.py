"""Tokenizer classes of transformers that make normalizer, splits and decoder themselves, whatever tokenizer.json says.

Facts of transformers 5.24 (models/*/tokenization_*.py): the class that tokenizer_config.json names, or that belongs to
the model_type, is asked; a folder without tokenizer.json is read by the class alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from ..ir.errors import ConfigError

Settings = Mapping[str, Any]
GENERIC = ("TokenizersBackend", "PythonBackend", "PreTrainedTokenizer", "MistralCommonBackend")
"""Classes that take tokenizer.json as it is."""
OF_MODEL = {
    "bert": "BertTokenizer", "distilbert": "DistilBertTokenizer", "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer", "gemma3_text": "GemmaTokenizer", "gpt2": "GPT2Tokenizer", "gptj": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer", "mamba2": "GPTNeoXTokenizer", "mistral": "TokenizersBackend",
    "mixtral": "TokenizersBackend", "qwen2": "Qwen2Tokenizer", "roberta": "RobertaTokenizer", "t5": "T5Tokenizer",
    "whisper": "WhisperTokenizer",
}  # fmt: skip
"""The class of a model_type, which is asked where tokenizer_config.json names none."""
ALIASES = {
    **dict.fromkeys(("ElectraTokenizer", "LxmertTokenizer", "MobileBertTokenizer", "SqueezeBertTokenizer"),
                    "BertTokenizer"),
    **dict.fromkeys(("BartTokenizer", "LEDTokenizer", "LongformerTokenizer", "MvpTokenizer"), "RobertaTokenizer"),
}  # fmt: skip
"""Names that transformers has for a class of another name."""
_SPACE = "\u2581"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class TokenizerClass:
    """What a class does. special: tokens that it has unless the settings name others. files: those it is made of where
    there is no tokenizer.json. split: sets normalizer, splits and decoder. frame: sets what is put around a text.
    always: also where tokenizer.json splits in a way of its own.
    """

    special: Mapping[str, str]
    files: tuple[str, ...]
    split: Callable[[tokenizers.Tokenizer, Settings], None]
    frame: Callable[[tokenizers.Tokenizer, Settings], None] | None = None
    always: bool = False
    reads: tuple[str, ...] = field(default=())

    def build(self, folder: Path, settings: Settings) -> tokenizers.Tokenizer:
        """The core of a folder that has only vocabulary files. Raises ConfigError for a damaged one."""
        paths = [str(folder / name) for name in self.files]
        try:
            if self.files == WORDS:
                words = models.WordPiece.read_file(paths[0])
                return tokenizers.Tokenizer(models.WordPiece(words, unk_token=str(settings["unk_token"])))
            vocab, merges = models.BPE.read_file(paths[0], paths[1])
            return tokenizers.Tokenizer(models.BPE(vocab, merges))
        except Exception as e:  # the library raises plain Exception for any content it does not understand
            raise ConfigError(f"cannot be read: {e}", place=" and ".join(paths)) from None

    def fits(self, core: tokenizers.Tokenizer) -> bool:
        """Whether the class makes such a core: of another kind, tokenizer.json is kept as it is."""
        made: Any = core
        if self.always:
            return isinstance(made.model, models.WordPiece if self.files == WORDS else models.BPE)
        return isinstance(made.pre_tokenizer, pre_tokenizers.ByteLevel)

    def apply(self, core: tokenizers.Tokenizer, settings: Settings) -> None:
        self.split(core, settings)
        if self.frame is not None:
            self.frame(core, settings)


WORDS = ("vocab.txt",)
MERGES = ("vocab.json", "merges.txt")


def _llama(core: Any, settings: Settings) -> None:
    prefix = settings.get("add_prefix_space") is not False
    scheme = ("always" if settings.get("legacy") else "first") if prefix else "never"
    core.model.fuse_unk, core.model.byte_fallback = True, True
    core.normalizer = None
    core.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    core.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])


def _gemma(core: Any, settings: Settings) -> None:
    core.model.fuse_unk, core.model.byte_fallback = True, True
    core.model.unk_token = settings["unk_token"]
    core.normalizer = normalizers.Replace(" ", _SPACE)
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])


def _bert(core: Any, settings: Settings) -> None:
    core.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    core.pre_tokenizer, core.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece("##")


def _bert_frame(core: Any, settings: Settings) -> None:
    first, last = settings["cls_token"], settings["sep_token"]
    core.post_processor = processors.TemplateProcessing(
        single=f"{first}:0 $A:0 {last}:0",
        pair=f"{first}:0 $A:0 {last}:0 $B:1 {last}:1",
        special_tokens=[(first, core.token_to_id(first)), (last, core.token_to_id(last))],
    )


def _bytes(core: Any, settings: Settings) -> None:
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space")))
    core.decoder = decoders.ByteLevel()


def _neox(core: Any, settings: Settings) -> None:
    core.normalizer = normalizers.NFC()
    _bytes(core, settings)


def _qwen(core: Any, settings: Settings) -> None:
    core.normalizer, core.decoder = normalizers.NFC(), decoders.ByteLevel()
    prefix = bool(settings.get("add_prefix_space"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
    )


def _roberta_frame(core: Any, settings: Settings) -> None:
    first, last = settings["cls_token"], settings["sep_token"]
    core.post_processor = processors.RobertaProcessing(
        (last, core.token_to_id(last)),
        (first, core.token_to_id(first)),
        settings.get("trim_offsets", True),
        bool(settings.get("add_prefix_space")),
    )


def _no_frame(core: Any, settings: Settings) -> None:
    core.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])


_END = "<|endoftext|>"
_BERT = {f"{k}_token": f"[{k.upper()}]" for k in ("unk", "sep", "pad", "cls", "mask")}
_GPT2: dict[str, str] = {"unk_token": _END, "bos_token": _END, "eos_token": _END}
_LLAMA = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_ROBERTA = {**_LLAMA, "sep_token": "</s>", "cls_token": "<s>", "pad_token": "<pad>", "mask_token": "<mask>"}
_GEMMA = {f"{k}_token": f"<{k}>" for k in ("unk", "bos", "eos", "pad", "mask")}
_WORDS = ("do_lower_case", "tokenize_chinese_chars", "strip_accents")
_PREFIX = ("add_prefix_space", "trim_offsets")

CLASSES = {
    "LlamaTokenizer": TokenizerClass(_LLAMA, MERGES, _llama, always=True, reads=("add_prefix_space", "legacy")),
    "GemmaTokenizer": TokenizerClass(_GEMMA, MERGES, _gemma, always=True),
    "BertTokenizer": TokenizerClass(_BERT, WORDS, _bert, _bert_frame, always=True, reads=_WORDS),
    "DistilBertTokenizer": TokenizerClass(_BERT, WORDS, _bert, _bert_frame, always=True, reads=_WORDS),
    "GPT2Tokenizer": TokenizerClass(_GPT2, MERGES, _bytes, reads=_PREFIX),
    "RobertaTokenizer": TokenizerClass(_ROBERTA, MERGES, _bytes, _roberta_frame, reads=_PREFIX),
    "GPTNeoXTokenizer": TokenizerClass({**_GPT2, "pad_token": "<|padding|>"}, MERGES, _neox, _no_frame, reads=_PREFIX),
    "Qwen2Tokenizer": TokenizerClass(
        {"unk_token": _END, "eos_token": _END, "pad_token": _END}, MERGES, _qwen, reads=("add_prefix_space",)
    ),
}


def class_name(settings: Settings, config: Settings, byte_level: bool) -> str:
    """The class that transformers reads a folder with; empty for one that takes tokenizer.json as it is.

    settings, config: tokenizer_config.json and config.json. byte_level: whether tokenizer.json works on bytes.
    """
    own = OF_MODEL.get(str(config.get("model_type")), "")
    said = settings.get("tokenizer_class") or config.get("tokenizer_class") or ""
    said = str(said).removesuffix("Fast")
    said = ALIASES.get(said, said)
    if said == "LlamaTokenizer" and byte_level:
        return ""
    if said and own and own != said:
        return "" if own in GENERIC else said
    return "" if (said or own) in GENERIC else said or own
