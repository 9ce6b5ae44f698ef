"""The tokenizer of a Hugging Face folder: every file that says something about it, read as transformers reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import tokenizers
from tokenizers import AddedToken, processors

from ..ir.documents import read_text
from ..ir.errors import ConfigError, unreadable
from .chat import chat_templates
from .entries import Entries, Note
from .json_file import read_json
from .tokenizer_classes import CLASSES, MERGES, WORDS, TokenizerClass, class_name

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
TEMPLATES = "additional_chat_templates"
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "tiktoken.model")
_OTHERS = (MERGES, WORDS, *((name,) for name in _SENTENCEPIECE))
_USED = (
    *NAMED, "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "chat_template",
    "tokenizer_class", "model_max_length", "clean_up_tokenization_spaces", "split_special_tokens", "truncation_side",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", "add_bos_token", "add_eos_token",
)  # fmt: skip
_NOTED = {
    **dict.fromkeys(("name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "merges_file"),
                    "says where a file once was"),
    **dict.fromkeys(("auto_map", "processor_class"), "names code, and code of a checkpoint is never run"),
    **dict.fromkeys(("padding_side", "pad_to_multiple_of", "pad_token_type_id", "padding", "max_length", "stride"),
                    "rows are padded on the right, with a mask"),
    "truncation_strategy": "a text alone is cut, never a pair",
    "model_input_names": "inputs are those of the graph",
    "return_token_type_ids": "inputs are those of the graph",
    "use_default_system_prompt": "read by an old template that no class has any more",
    "errors": "bytes that are no character are U+FFFD",
    **dict.fromkeys(("response_template", "response_schema", "chat_control_tokens"), "answers are not taken apart"),
    **dict.fromkeys(("backend", "is_local", "local_files_only", "init_inputs", "files_loaded",
                     "max_len_single_sentence", "max_len_sentences_pair", "from_slow", "use_fast",
                     "spaces_between_special_tokens", "sp_model_kwargs", "do_basic_tokenize", "never_split", "verbose",
                     "_commit_hash", "unk_id", "extra_ids", "model_specific_special_tokens"),
                    "tokenizer.json and the other entries say it"),
    **dict.fromkeys(("language", "task", "predict_timestamps", "normalizer_file"), "said when speech is read"),
}  # fmt: skip
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
_UNREAD = "transformers 5.24 does not read it"


class TokenizerFiles:
    """What the files of a folder say: `core`, the merged `settings`, and `notes` on what does not matter.

    Raises ConfigError naming the file and all that is not understood.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, folder / "tokenizer_config.json"
        self.config = read_json(folder / "config.json")
        self.settings = self._merged(read_json(self.place))
        self.entries = Entries(self.settings, self.place)
        path = folder / "tokenizer.json"
        found = _core(path) if path.is_file() else None
        name = class_name(self.settings, self.config, found is not None and _is_byte_level(found))
        kind = CLASSES.get(name)
        kept = found is not None and (kind is None or not kind.fits(found))
        if kind is not None and not kept:
            self.settings |= {k: v for k, v in kind.special.items() if self.settings.get(k) is None}
        if found is None and not (kind is not None and all((folder / f).is_file() for f in kind.files)):
            raise ConfigError(_no_core(folder, name), place=str(folder), hint=_HINT)
        self.core = found or cast(TokenizerClass, kind).build(folder, self.settings)
        self._special(kind if not kept else None, rebuilt=found is None)
        if kept and str(self.settings.get("tokenizer_class")).removesuffix("Fast") in CLASSES:
            self.settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # tokenizer.json alone says it all
        self.settings["chat_template"] = self._templates()
        self.settings = {k: v for k, v in self.settings.items() if v is not None}
        self.notes = self._account(kind)

    def _merged(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings with those of the two older files, which count where tokenizer_config.json lists no added tokens."""
        if "added_tokens_decoder" not in settings:
            older = read_json(self.folder / "special_tokens_map.json")
            settings |= {k: _special_token(v) for k, v in older.items()}
            added = read_json(self.folder / "added_tokens.json")
            named = {_content(settings.get(k)) for k in NAMED} | set(map(_content, _listed(settings)))
            if added:
                settings["added_tokens_decoder"] = {
                    str(i): {"content": t, "special": t in named, "normalized": t not in named}
                    for t, i in added.items()
                }
        if settings.get("additional_special_tokens") and not settings.get("extra_special_tokens"):
            settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
        return settings

    def _special(self, kind: TokenizerClass | None, *, rebuilt: bool) -> None:
        """Tokens of the settings are added to the core in transformers' order; a new one gets the next free id."""
        decoder = self._decoder()
        named = {k: self._token(k, v) for k, v in self._named().items()}
        if kind is not None:
            kind.split(self.core, {**self.settings, **{k: str(t.content) for k, t in named.items()}})
        of_file = {t.content: t for t in decoder.values()}
        added = list(decoder.values())
        for token in [*named.values(), *(self._token("extra_special_tokens", t) for t in _listed(self.settings))]:
            if token.content not in of_file and token.content not in self._known():
                added.append(token)
                of_file[token.content] = token
        contents = {t.content for t in named.values()}
        core: Any = self.core  # the annotation of add_tokens is a bare list
        core.add_tokens([_as_special(t) if t.content in contents else t for t in added])
        if kind is not None and kind.frame is not None:
            kind.frame(self.core, {**self.settings, **{k: str(t.content) for k, t in named.items()}})
        elif rebuilt:
            _frame(core, self.settings, {k: str(t.content) for k, t in named.items()})

    def _known(self) -> set[str]:
        return {t.content for t in self.core.get_added_tokens_decoder().values()}

    def _decoder(self) -> dict[int, AddedToken]:
        """Added tokens by id: of tokenizer_config.json, or of the older files and tokenizer.json."""
        found: dict[int, AddedToken] = {}
        said: Any = self.settings.get("added_tokens_decoder")
        for id, token in cast("dict[str, Any]", said if isinstance(said, dict) else {}).items():
            if not str(id).isdigit():
                raise ConfigError(f"added_tokens_decoder has the id {id!r}, expected a number", place=str(self.place))
            found[int(id)] = self._token(f"added_tokens_decoder[{id}]", token)
        if "added_tokens_decoder" not in read_json(self.place):
            found |= self.core.get_added_tokens_decoder()
        return dict(sorted(found.items()))

    def _named(self) -> dict[str, Any]:
        """Special tokens with a name: those every tokenizer has, then those of this one (image_token, eot_token)."""
        own: dict[str, Any] = {
            k: v
            for k, v in self.settings.items()
            if (k in NAMED and v is not None) or (k.endswith("_token") and isinstance(v, (str, dict)))
        }
        extra = self.settings.get("extra_special_tokens")
        more = cast("dict[str, Any]", extra) if isinstance(extra, dict) else {}
        return {k: own[k] for k in NAMED if k in own} | {k: v for k, v in own.items() if k not in NAMED} | more

    def _token(self, key: str, value: Any) -> AddedToken:
        """A token as an object of the library. Raises ConfigError for what is neither a text nor one written out."""
        if isinstance(value, AddedToken):
            return value
        if isinstance(value, str):
            return AddedToken(value, special=True)
        said = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        if not isinstance(said.get("content"), str):
            what = f"{key} is {str(cast('object', value))[:60]}, expected a token: a text, or an object with content"
            raise ConfigError(what, place=str(self.place))
        flags = {
            k: bool(v) for k, v in said.items() if k in ("lstrip", "rstrip", "single_word", "normalized", "special")
        }
        return AddedToken(said["content"], **flags)

    def _templates(self) -> Any:
        """The chat template, or several by name; files of their own win over tokenizer_config.json."""
        found: dict[str, str] = {}
        single = self.folder / "chat_template.jinja"
        if single.is_file():
            found["default"] = _text(single)
        for path in sorted((self.folder / TEMPLATES).glob("*.jinja")):
            found[path.stem] = _text(path)
        older = read_json(self.folder / "chat_template.json").get("chat_template")
        said = found or self.settings.get("chat_template") or older
        named = chat_templates(said, str(self.place))
        return named["default"] if [*named] == ["default"] else named or None

    def _account(self, kind: TokenizerClass | None) -> tuple[Note, ...]:
        """The notes on settings that change nothing here."""
        entries = Entries(self.settings, self.place)
        own = kind.reads if kind is not None else ()
        for key in [*_USED, *own, *self._named()]:
            entries.use(key)
        for key, why in _NOTED.items():
            entries.note(key, why)
        if self.settings.get("fix_mistral_regex"):
            entries.refuse("fix_mistral_regex", "it replaces the splits of tokenizer.json; save the fixed tokenizer")
        entries.use("model_max_length")
        for key in entries.left:
            entries.note(key, _UNREAD)
        for key in ("padding_side", "truncation_side"):
            if self.settings.get(key, "right") not in ("left", "right"):
                entries.refuse(key, "expected left or right")
        return entries.close()


_HINT = "save it with transformers' save_pretrained, which writes tokenizer.json, or load without a tokenizer"


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has files of a tokenizer, of any kind."""
    return any(all((folder / f).is_file() for f in files) for files in (("tokenizer.json",), *_OTHERS))


def _no_core(folder: Path, name: str) -> str:
    there = [f for files in _OTHERS for f in files if (folder / f).is_file()]
    if not there:
        return "has no tokenizer.json"
    known = ", ".join(CLASSES)
    what = f"has no tokenizer.json, only {', '.join(there)}"
    if any(f in _SENTENCEPIECE for f in there):
        return f"{what}, which is not read here"
    return f"{what}; they are read for the classes {known}, and this is {name or 'none of a known class'}"


def _core(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(read_text(path))
    except (OSError, ValueError) as e:
        raise ConfigError(unreadable(e), place=str(path)) from None
    except Exception as e:  # the library raises plain Exception for any content it does not understand
        raise ConfigError(f"is not understood by tokenizers {tokenizers.__version__}: {e}", place=str(path)) from None


def _is_byte_level(core: tokenizers.Tokenizer) -> bool:
    return '"ByteLevel"' in core.to_str()


def _frame(core: Any, settings: Mapping[str, Any], named: Mapping[str, str]) -> None:
    """BOS and EOS around a text, as the settings of a folder without tokenizer.json say."""
    before = [named["bos_token"]] if settings.get("add_bos_token") and "bos_token" in named else []
    after = [named["eos_token"]] if settings.get("add_eos_token") and "eos_token" in named else []
    single = [*(f"{t}:0" for t in before), "$A:0", *(f"{t}:0" for t in after)]
    pair = [*single, *(f"{t}:1" for t in before), "$B:1", *(f"{t}:1" for t in after)]
    used = [(t, core.token_to_id(t)) for t in dict.fromkeys([*before, *after])]
    core.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)


def _as_special(token: AddedToken) -> AddedToken:
    token.special = True
    return token


def _special_token(value: Any) -> Any:
    """An entry of special_tokens_map.json: a token written out there is special."""
    said = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    return {**said, "special": True} if "content" in said else cast("object", value)


def _listed(settings: Mapping[str, Any]) -> list[Any]:
    extra = settings.get("extra_special_tokens")
    return cast("list[Any]", extra) if isinstance(extra, list) else []


def _content(token: Any) -> str:
    said = cast("dict[str, Any]", token).get("content") if isinstance(token, dict) else token
    return said if isinstance(said, str) else ""


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as e:
        raise ConfigError(unreadable(e), place=str(path)) from None
