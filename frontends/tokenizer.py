"""Text to ids and back: a thin layer over the `tokenizers` library that knows special ids, chats and streams."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import tokenizers
import tokenizers.models

from ..ir.errors import ConfigError, RuntimeInputError, did_you_mean
from ..ir.files import Stage, staged
from .chat import ChatRenderer, chat_templates
from .entries import Note
from .json_file import read_json as read_json
from .tokenizer_files import NAMED, TokenizerFiles

_TURN_ENDS = ("eot_token", "eom_token")
_BROKEN = "\ufffd"
GENERATION = "generation_config.json"
_LEAST_CONTEXT = 8
_MOST_BROKEN = 8
"""Replacement characters before the last few are not the start of a character any more, but wrong bytes."""


class Tokenizer:
    """A `tokenizers.Tokenizer` with the settings of its checkpoint.

    settings: the content of tokenizer_config.json. eos_ids: every id that ends a text, the main one first.
    special_ids: those that stand for no text. notes: what its files say that changes nothing here.
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        settings: Mapping[str, Any] | None = None,
        eos_ids: Sequence[int] = (),
        notes: Sequence[Note] = (),
    ) -> None:
        core.no_truncation()
        core.no_padding()
        self.core, self.settings = core, dict(settings or {})
        self.renderer = ChatRenderer()
        self.notes = tuple(notes)
        core.encode_special_tokens = bool(self.settings.get("split_special_tokens"))
        ids = {name: self._id_of(name) for name in (*NAMED, *_TURN_ENDS)}
        first = [i for i in (ids[name] for name in ("eos_token", *_TURN_ENDS)) if i is not None]
        self.eos_ids = tuple(dict.fromkeys([*first, *eos_ids]))
        self.bos_id, self.pad_id, self.mask_id = ids["bos_token"], ids["pad_token"], ids["mask_token"]
        self.cls_id, self.sep_id = ids["cls_token"], ids["sep_token"]
        named = {i for i in ids.values() if i is not None}
        self.cleans = self._cleans()
        self.special_ids = frozenset(named | {i for i, t in core.get_added_tokens_decoder().items() if t.special})

    @staticmethod
    def open(folder: str | Path) -> Tokenizer:
        """Read tokenizer.json, or the vocabulary files of a class that is known, and what stands beside them.

        The ids are those that transformers gives. Ends of generation: what tokenizer_config.json, config.json and
        generation_config.json say. Raises ConfigError naming the file.
        """
        found = TokenizerFiles(Path(folder))
        return Tokenizer(found.core, found.settings, said_ends(Path(folder), found.config), found.notes)

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

    def fitted(self, vocab: int | None, place: str | Path) -> tuple[Note, ...]:
        """The notes, with one on ids that a model of `vocab` tokens does not have, if only added tokens are such.

        Raises ConfigError if an ordinary text can get such an id.
        """
        if vocab is None or self.size <= vocab:
            return self.notes
        added = self.core.get_added_tokens_decoder()
        ordinary = {i: t for t, i in self.core.get_vocab(with_added_tokens=False).items() if i not in added}
        beyond = sorted(i for i in ordinary if i >= vocab)
        if beyond:
            what = f"the tokenizer has ids up to {max(beyond)}, but the model has {vocab} tokens: {len(beyond)} ids, "
            what += f"from {ordinary[beyond[0]]!r} ({beyond[0]}) on, are unknown to it"
            raise ConfigError(what, place=str(place), hint="take the tokenizer of this model, or load it without one")
        names = [t.content for i, t in sorted(added.items()) if i >= vocab]
        why = f"added tokens that the model, which has {vocab} tokens, does not know; a text that names one is refused"
        return (*self.notes, Note(str(place), "added_tokens", ", ".join(names), why))

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
            side = self.settings.get("truncation_side", "right")
            bare.truncate(max(0, max_length - (len(ids) - len(bare.ids))), direction=side)
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
        text = self.core.decode(list(ids), skip_special_tokens=skip_special)
        return _without_spaces(text) if self.cleans else text

    def _cleans(self) -> bool:
        """Whether spaces before punctuation go from decoded text; transformers does not do it to BPE unless forced."""
        forced = self.settings.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
        bpe = isinstance(self.core.model, tokenizers.models.BPE)
        return bool(self.settings.get("clean_up_tokenization_spaces")) and (not bpe or bool(forced))

    def stream(self, before: Sequence[int] = (), *, skip_special: bool = True) -> Stream:
        """A decoder for ids that come one at a time, after those of `before`."""
        return Stream(self, skip_special, before)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt for a conversation, [{"role": "user", "content": "..."}], by the checkpoint's template.

        Encode it with add_special=False: the template writes special tokens itself. Raises ConfigError when there is
        no template, and RuntimeInputError when it refuses the messages or goes beyond the limits of `ChatRenderer`.
        """
        return self.marked_chat(messages, add_generation_prompt=add_generation_prompt, **variables)[0]

    def marked_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        """(the text of `chat`, (start, end) of each part that the template marks as what the model says)."""
        template = self._template(variables.pop("template", None), bool(variables.get("tools")))
        special = {name: _content(self.settings.get(name)) for name in NAMED}
        known = {"add_generation_prompt": add_generation_prompt, "tools": None, "documents": None}
        given = {k: v for k, v in special.items() if v is not None}
        return self.renderer.render(template, messages, {**given, **known, **variables})

    def _template(self, name: str | None, tools: bool) -> str:
        """The template of this name; without one that for tools if there are any, else the usual one."""
        named = chat_templates(self.settings.get("chat_template"))
        if not named:
            raise ConfigError("this tokenizer has no chat template", hint="give plain text, without a chat")
        chosen = name or ("tool_use" if tools and "tool_use" in named else "default")
        if chosen not in named:
            raise ConfigError(
                f"no chat template is called {chosen!r}{did_you_mean(chosen, named)}", hint=f"known: {', '.join(named)}"
            )
        return named[chosen]

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
        named = settings.get("chat_template")
        if isinstance(named, dict):
            # The form that every client knows for several templates.
            listed = [{"name": k, "template": v} for k, v in cast("dict[str, str]", named).items()]
            settings["chat_template"] = listed
        with stage.open("tokenizer.json") as f:
            f.write(self.core.to_str(pretty=True).encode())
        with stage.open("tokenizer_config.json") as f:
            f.write(json.dumps(settings, indent=2, ensure_ascii=False).encode())


class Stream:
    """Decodes ids one at a time; what it gives never ends inside a character.

    before: ids that stand before them, whose text is not given: some decoders write a token differently at the start
    of a text, so " cat" after "The" keeps its space.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool, before: Sequence[int] = ()) -> None:
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._ids = self._end(before)
        self._context = len(self._ids)
        self._given = len(self._text().rstrip(_BROKEN))

    def _end(self, before: Sequence[int]) -> list[int]:
        """As few of the last ids as have a text that what follows can lean on; all of them if none has."""
        count = _LEAST_CONTEXT
        while count < len(before):
            ids = list(before[-count:])
            if self._tokenizer.decode(ids, skip_special=self._skip_special).strip(_BROKEN):
                return ids
            count *= 2
        return list(before)

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
        self._ids, self._context, self._given = list[int](), 0, 0
        return rest

    def _text(self) -> str:
        return self._tokenizer.decode(self._ids, skip_special=self._skip_special)


def _without_spaces(text: str) -> str:
    for piece in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(piece, piece.strip())
    return text


def said_ends(folder: Path, config: Mapping[str, Any]) -> list[int]:
    """Ids that end a text by generation_config.json and config.json."""
    found: list[int] = []
    for name, said in ((GENERATION, read_json(folder / GENERATION)), ("config.json", config)):
        ids: Any = said.get("eos_token_id")
        for id in ids if isinstance(ids, list) else [] if ids is None else [ids]:  # pyright: ignore
            if not isinstance(id, int) or isinstance(id, bool):
                raise ConfigError(f"has eos_token_id {ids!r}, expected an id or a list", place=str(folder / name))
            found.append(id)
    return [i for i in dict.fromkeys(found) if i >= 0]


def _content(token: Any) -> str | None:
    """The text of a special token, written in tokenizer_config.json as text or as an object."""
    if isinstance(token, dict):
        token = cast("dict[str, Any]", token).get("content")
    return token if isinstance(token, str) else None
