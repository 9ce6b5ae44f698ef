"""Text to ids and back: a thin layer over the `tokenizers` library that knows special ids, chats and streams."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import tokenizers

from ..ir.documents import parse_json, read_text
from ..ir.errors import ConfigError, RuntimeInputError, did_you_mean
from ..ir.files import Stage, staged
from .chat import render

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
_BROKEN = "\ufffd"
_MOST_BROKEN = 8
"""Replacement characters before the last few are not the start of a character any more, but wrong bytes."""


class Tokenizer:
    """A `tokenizers.Tokenizer` with the settings of its checkpoint.

    settings: the content of tokenizer_config.json. eos_ids: every id that ends a text, the main one first.
    special_ids: those that stand for no text.
    """

    def __init__(
        self, core: tokenizers.Tokenizer, settings: Mapping[str, Any] | None = None, eos_ids: Sequence[int] = ()
    ) -> None:
        core.no_truncation()
        core.no_padding()
        self.core, self.settings = core, dict(settings or {})
        ids = {name: self._id_of(name) for name in _SPECIAL}
        first = [ids["eos_token"]] if ids["eos_token"] is not None else []
        self.eos_ids = tuple(dict.fromkeys([*first, *eos_ids]))
        self.bos_id, self.pad_id, self.mask_id = ids["bos_token"], ids["pad_token"], ids["mask_token"]
        self.cls_id, self.sep_id = ids["cls_token"], ids["sep_token"]
        named = {i for i in ids.values() if i is not None}
        self.special_ids = frozenset(named | {i for i, t in core.get_added_tokens_decoder().items() if t.special})

    @staticmethod
    def open(folder: str | Path) -> Tokenizer:
        """Read tokenizer.json and, if there, tokenizer_config.json, chat_template.jinja, generation_config.json.

        Raises ConfigError naming the file.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.exists():
            raise ConfigError("has no tokenizer.json", place=str(folder))
        try:
            core = tokenizers.Tokenizer.from_str(read_text(path))
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"cannot be read: {e}", place=str(path)) from None
        except Exception as e:  # the library raises plain Exception for any content it does not understand
            raise ConfigError(
                f"is not understood by tokenizers {tokenizers.__version__}: {e}", place=str(path)
            ) from None
        settings = {**read_json(folder / "special_tokens_map.json"), **read_json(folder / "tokenizer_config.json")}
        template = folder / "chat_template.jinja"
        if template.exists():
            settings["chat_template"] = _template(template)
        eos = read_json(folder / "generation_config.json").get("eos_token_id")
        ids = cast("list[int]", eos if isinstance(eos, list) else [] if eos is None else [eos])
        return Tokenizer(core, settings, ids)

    def _id_of(self, name: str) -> int | None:
        text = _content(self.settings.get(name))
        return None if text is None else self.core.token_to_id(text)

    @property
    def eos_id(self) -> int | None:
        return self.eos_ids[0] if self.eos_ids else None

    @property
    def tail(self) -> int:
        """How many special tokens come after a text."""
        bare, framed = self.encode("a", add_special=False), self.encode("a")
        ends = (len(framed) - i - len(bare) for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
        return next(ends, 0)

    @property
    def start_id(self) -> int | None:
        """What a decoder that is given a source begins with: BOS, else padding, else the end of text."""
        return next((i for i in (self.bos_id, self.pad_id, self.eos_id) if i is not None), None)

    @property
    def size(self) -> int:
        """Ids run from 0 to size - 1, added tokens included."""
        return self.core.get_vocab_size(with_added_tokens=True)

    def difference(self, other: Tokenizer) -> str:
        """Why a text gets other ids from the other one; empty if it does not. What is put around texts is not asked."""
        mine, theirs = (t.core.get_vocab(with_added_tokens=True) for t in (self, other))
        moved = sorted(t for t in mine.keys() | theirs.keys() if mine.get(t) != theirs.get(t))
        if moved:
            ids = " and ".join("none" if i is None else str(i) for i in (mine.get(moved[0]), theirs.get(moved[0])))
            return f"{len(moved)} tokens have other ids, such as {moved[0]!r}: {ids}"
        # The library does not read the last digit of a score back as it wrote it.
        parts = [json.loads(t.core.to_str(), parse_float=lambda x: f"{float(x):.9g}") for t in (self, other)]
        wrong = [k for k in ("normalizer", "pre_tokenizer", "model") if parts[0][k] != parts[1][k]]
        return f"the ids are the same, but not how a text is cut ({', '.join(wrong)})" if wrong else ""

    def encode(
        self,
        text: str,
        pair: str | None = None,
        *,
        add_special: bool = True,
        literal: bool = False,
        max_length: int | None = None,
    ) -> list[int]:
        """Ids of a text (or of two, for models that compare). add_special: with BOS, CLS, SEP as the model wants.
        literal: the name of a special token in the text is read letter by letter, like any word.
        max_length: a single text that has more ids loses its end, but not the special ids after it.

        Raises RuntimeInputError for what is not a text of Unicode characters.
        """
        try:
            core = self.literal if literal else self.core
            ids = list(core.encode(text, pair, add_special_tokens=add_special).ids)
            if max_length is None or len(ids) <= max_length:
                return ids
            bare = core.encode(text, add_special_tokens=False)
            bare.truncate(max(0, max_length - (len(ids) - len(bare.ids))))
            return list(core.post_process(bare, None, add_special).ids)
        except (TypeError, UnicodeEncodeError):
            given = [t for t in (text, pair) if t is not None]
            shown = ", ".join(ascii(t)[:60] for t in given)
            raise RuntimeInputError(f"{shown} is not a text of Unicode characters") from None

    @functools.cached_property
    def literal(self) -> tokenizers.Tokenizer:
        """A copy of `core` to which nothing in a text is special."""
        core = tokenizers.Tokenizer.from_str(self.core.to_str())
        core.encode_special_tokens = True
        return core

    def types(self, text: str, pair: str | None = None) -> list[int]:
        """The token type of every id that `encode` gives with special tokens: 0 for the first text, 1 for the pair."""
        return list(self.core.encode(text, pair).type_ids)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return self.core.decode(list(ids), skip_special_tokens=skip_special)

    def stream(self, *, skip_special: bool = True) -> Stream:
        """A decoder for ids that come one at a time."""
        return Stream(self, skip_special)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt for a conversation, [{"role": "user", "content": "..."}], by the checkpoint's template.

        Encode it with add_special=False: the template writes special tokens itself. Raises ConfigError when there is
        no template and RuntimeInputError when it refuses the messages.
        """
        template = self._template(variables.pop("template", "default"))
        special = {name: _content(self.settings.get(name)) or "" for name in _SPECIAL}
        known = {"add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        return render(template, messages, {**special, **known, **variables})

    def _template(self, name: str) -> str:
        found = self.settings.get("chat_template")
        if isinstance(found, list):
            named = {t["name"]: t["template"] for t in cast("list[dict[str, Any]]", found)}
            if name not in named:
                raise ConfigError(f"no chat template is called {name!r}{did_you_mean(name, named)}")
            found = named[name]
        if not isinstance(found, str):
            raise ConfigError("this tokenizer has no chat template", hint="give plain text, without a chat")
        return found

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json."""
        with staged(folder) as stage:
            self.write(stage)

    def write(self, stage: Stage) -> None:
        """Add tokenizer.json and tokenizer_config.json to files that appear together."""
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **self.settings,
        }
        with stage.open("tokenizer.json") as f:
            f.write(self.core.to_str(pretty=True).encode())
        with stage.open("tokenizer_config.json") as f:
            f.write(json.dumps(settings, indent=2, ensure_ascii=False).encode())


class Stream:
    """Decodes ids one at a time; what it gives never ends inside a character."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._ids: list[int] = []
        self._context = 0
        self._given = 0

    def push(self, id: int) -> str:
        """The text that is certain now and was not before; empty while a character is incomplete."""
        self._ids.append(id)
        text = self._text()
        certain = text.rstrip(_BROKEN)
        if len(text) - len(certain) > _MOST_BROKEN:
            certain = text[:-_MOST_BROKEN]
        new = certain[self._given :]
        self._given = max(self._given, len(certain))
        if new and certain == text:
            # One step of context stays: some decoders write a token differently at the start of a text.
            self._ids, self._context = self._ids[self._context :], len(self._ids) - self._context
            self._given = len(self._text())
        return new

    def flush(self) -> str:
        """The rest, wrong bytes included (as U+FFFD); the stream starts anew."""
        rest = self._text()[self._given :]
        self._ids, self._context, self._given = [], 0, 0
        return rest

    def _text(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special=self._skip_special)


def _content(token: Any) -> str | None:
    """The text of a special token, written in tokenizer_config.json as text or as an object."""
    if isinstance(token, dict):
        token = cast("dict[str, Any]", token).get("content")
    return token if isinstance(token, str) else None


def _template(path: Path) -> str:
    """A chat template in a file of its own. Raises ConfigError naming the file."""
    try:
        return read_text(path)
    except (OSError, ValueError) as e:
        raise ConfigError(f"cannot be read: {e}", place=str(path)) from None


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file; empty if there is no such file. Raises ConfigError naming the file."""
    try:
        found = parse_json(read_text(path))
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise ConfigError(f"cannot be read: {e.strerror}", place=str(path)) from None
    except ValueError as e:
        raise ConfigError(f"is not JSON that can be read: {e}", place=str(path)) from None
    if not isinstance(found, dict):
        raise ConfigError(f"is a JSON {type(found).__name__}, not an object", place=str(path))
    return cast("dict[str, Any]", found)
