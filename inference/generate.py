"""The generation loop: prefill once, then one step a token, for a batch of prompts of different lengths."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np

from ..frontends.tokenizer import Tokenizer
from ..ir.display import Shown, Table
from ..ir.errors import RuntimeInputError, did_you_mean
from ..ir.silent import silent
from .constraint import Constraint, restrict
from .errors import GenerationError
from .logprobs import Logprob, logprob
from .prompts import pad, rows_of
from .sampling import Array, Sampler, Sampling
from .text import RowText

Reason = Literal["stop", "length", "eos", "cancelled"]


class Session(Protocol):
    """A model that remembers what it has read."""

    @property
    def lengths(self) -> Array:
        """Tokens read so far, i64 [B]."""
        ...

    def prefill(self, tokens: Array, lengths: Array) -> Array:
        """Start anew: read prompts i64 [B,S], padded on the right; logits [B,V] after the last token of each."""
        ...

    def step(self, tokens: Array) -> Array:
        """Read one more token a row, i64 [B]; logits [B,V] after it."""
        ...


@runtime_checkable
class Shared(Protocol):
    """A session that tells when somebody else has begun to use it."""

    @property
    def owner(self) -> object:
        """A token that is another one whenever a new batch begins."""
        ...


@runtime_checkable
class Choosing(Protocol):
    """A session that can keep its logits where they are, and tell what a choice needs of them."""

    def step_greedy(self, tokens: Array) -> Array:
        """`step`, but the likeliest next token of each row, i64 [B]; -1 where none can be chosen."""
        ...

    def step_best(self, tokens: Array, k: int) -> Array:
        """`step`, but all logits that cannot be among the k largest may be -inf; k up to 64."""
        ...


MOST_BEST = 64
"""The largest top_k for which not all logits are needed."""


@dataclass(frozen=True)
class Timing:
    """Seconds and tokens of one call, all rows together. Decode counts what comes after the first token of each row."""

    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    decode_tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Decode speed; 0 if there was no decode step."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True, repr=False)
class Generation(Shown):
    """What came after one prompt.

    ids: the tokens chosen, without the end token. text: without the stop string and what came with it.
    reason: "eos", the model ended; "stop", a stop string appeared; "length", max_new_tokens were reached; "cancelled".
    logprobs: of each chosen token, the end token included, where they were asked for. prompt_logprobs: of each token
    of the prompt, None for the first, which nothing comes before.
    """

    prompt: list[int]
    ids: list[int]
    text: str
    reason: Reason
    timing: Timing
    logprobs: list[Logprob] = field(default_factory=list[Logprob])
    prompt_logprobs: list[Logprob | None] = field(default_factory=list["Logprob | None"])

    def table(self) -> Table:
        """The text, why it ended, and how fast it came (all rows of its call together)."""
        t = self.timing
        why = {"eos": "the model ended", "stop": "a stop string appeared", "length": "max_new_tokens were reached"}
        rows = [
            ("text", self.text),
            ("ended", f"{self.reason}: {why.get(self.reason, '')}".rstrip(": ")),
            ("tokens", f"{len(self.prompt):,} in the prompt, {len(self.ids):,} new"),
            ("prompt", f"{t.prompt_tokens:,} tokens in {t.prefill_seconds:.3f} s"),
            ("decode", f"{t.tokens_per_second:,.1f} tokens/s ({t.decode_tokens:,} in {t.decode_seconds:.3f} s)"),
        ]
        return Table("generation", rows)


@dataclass(frozen=True)
class Settings(Sampling):
    """How to generate: the fields of `Sampling`, and

    max_new_tokens: most tokens to add. stop: texts at which a row ends, also across tokens. eos: ids that end a row,
    or tokens of the vocabulary by name, such as "</s>" (None: those of the tokenizer; empty: none). context: most
    positions the model has, prompt included (None: any). logprobs, prompt_logprobs: tell log-probabilities of chosen
    and of prompt tokens, with so many likeliest tokens beside each (None: tell nothing).
    """

    max_new_tokens: int = 128
    stop: str | Sequence[str] | None = ()
    eos: int | str | Sequence[int | str] | None = None
    context: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.max_new_tokens, Integral) or self.max_new_tokens < 1:
            raise RuntimeInputError(f"max_new_tokens is {self.max_new_tokens!r}, expected a number of at least 1")
        for name in ("logprobs", "prompt_logprobs"):
            top: Any = getattr(self, name)
            if top is not None and (isinstance(top, bool) or not isinstance(top, Integral) or int(top) < 0):
                raise RuntimeInputError(f"{name} is {top!r}, expected a number from 0, or None")
        kinds: Any
        for name, kinds, what in (("stop", (str,), "a text"), ("eos", (str, Integral), "an id or the name of a token")):
            for x in _several(getattr(self, name)):
                if not isinstance(x, kinds) or isinstance(x, bool):
                    raise RuntimeInputError(f"{name} holds {x!r:.60}, expected {what}")

    @staticmethod
    def of(given: Mapping[str, Any]) -> Settings:
        """Settings from keywords. Raises RuntimeInputError for a name there is not."""
        known = [f.name for f in fields(Settings)]
        for name in given:
            if name not in known:
                raise RuntimeInputError(f"there is no setting called {name!r}{did_you_mean(name, known)}")
        return Settings(**given)

    @property
    def stops(self) -> tuple[str, ...]:
        return _several(self.stop)

    def ends(self, tokenizer: Tokenizer | None) -> frozenset[int]:
        """The ids that end a row. Raises RuntimeInputError for a name that is no token."""
        if self.eos is None:
            return frozenset(tokenizer.eos_ids if tokenizer is not None else ())
        return frozenset(_end(x, tokenizer) for x in _several(self.eos))

    def check(self, rows: Sequence[Sequence[int]]) -> None:
        """Raise RuntimeInputError if a row and what may come after it have no room in the context."""
        for i, row in enumerate(rows):
            if self.context is not None and len(row) + self.max_new_tokens > self.context:
                raise RuntimeInputError(
                    f"prompt {i} has {len(row)} tokens; with {self.max_new_tokens} new ones that is "
                    f"{len(row) + self.max_new_tokens}, but the model has {self.context} positions"
                )


def certain(tokens: Array) -> Array:
    """Tokens [B], all of them chosen. Raises GenerationError where a session could not choose one."""
    if (tokens < 0).any():
        row = int((tokens < 0).argmax())
        raise GenerationError(f"the largest logit of row {row} is not finite: no token can be chosen")
    return tokens


def _several(x: Any) -> tuple[Any, ...]:
    """The members of a list; what is not one is its only member."""
    if x is None:
        return ()
    return tuple(cast("Sequence[Any]", x)) if isinstance(x, (list, tuple, set, frozenset, np.ndarray)) else (x,)


def _end(end: int | str, tokenizer: Tokenizer | None) -> int:
    if not isinstance(end, str):
        return int(end)
    id = None if tokenizer is None else tokenizer.core.token_to_id(end)
    if id is None:
        what = f"eos is {end!r}, which is not a token of the vocabulary"
        raise RuntimeInputError(what if tokenizer is not None else f"eos {end!r} needs a tokenizer")
    return id


def generate(
    session: Session,
    tokenizer: Tokenizer | None,
    prompts: Any,
    *,
    attention_mask: Any = None,
    chat: bool = False,
    on_text: Callable[[int, str], None] | None = None,
    **settings: Any,
) -> list[Generation]:
    """Continue each prompt; results in the order of the prompts. settings: the fields of `Settings`.

    prompts, attention_mask, chat: see `rows_of`. on_text: called with (row, text) as soon as the text is certain.
    Each row gets what it would get alone. Raises RuntimeInputError for prompts, settings or lengths that cannot be,
    before the model runs.
    """
    rows = rows_of(prompts, tokenizer, attention_mask=attention_mask, chat=chat)
    decoding = Decoding(session, tokenizer, rows, Settings.of(settings))
    for row, text in decoding:
        (on_text or silent)(row, text)
    return decoding.results()


def stream(
    session: Session, tokenizer: Tokenizer, prompt: Any, *, chat: bool = False, **settings: Any
) -> Iterator[str]:
    """The text after one prompt, piece by piece; the pieces join to the text `generate` gives. Errors as there."""
    rows = rows_of(prompt, tokenizer, chat=chat)
    if len(rows) != 1:
        raise RuntimeInputError(f"stream takes one prompt, not {len(rows)}")
    decoding = Decoding(session, tokenizer, rows, Settings.of(settings))
    return (text for _, text in decoding)


@dataclass
class Row:
    """One prompt and what has come after it."""

    prompt: list[int]
    text: RowText
    seen: list[int]
    reason: Reason | None = None
    constraint: Constraint | None = None
    logprobs: list[Logprob] = field(default_factory=list[Logprob])

    @property
    def ids(self) -> list[int]:
        return self.seen[len(self.prompt) :]


class Decoding:
    """One batch on its way. Iterating runs it, and gives (row, text) whenever more text of a row is certain.

    read: reads prompts as `Session.prefill` does (None: that). constraints: one a row, or none at all. Raises
    RuntimeInputError when a session that is `Shared` has begun to read something else before this decoding ended.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer | None,
        rows: Sequence[list[int]],
        settings: Settings,
        read: Callable[[Array, Array], Array] | None = None,
        constraints: Sequence[Constraint | None] = (),
    ) -> None:
        settings.check(rows)
        if settings.stops and tokenizer is None:
            raise RuntimeInputError(f"stop strings {list(settings.stops)} need a tokenizer")
        self.session, self.settings, self.read = session, settings, read or session.prefill
        # Asked once: looking for the methods of a protocol takes longer than the rest of a step.
        self.shared = session if isinstance(session, Shared) else None
        self.choosing = session if isinstance(session, Choosing) else None
        self.ends = settings.ends(tokenizer)
        self.rows = [Row(row, RowText(tokenizer, settings.stops, row), list(row)) for row in rows]
        for row, constraint in zip(self.rows, constraints, strict=False):
            row.constraint = constraint
        self.sampler = Sampler(settings, len(rows))
        self.prefill_seconds = self.decode_seconds = 0.0
        self.decode_tokens = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        start = time.perf_counter()
        logits = self.read(*pad([r.prompt for r in self.rows]))
        owner = self._owner()
        tokens = self.choose(logits)
        self.prefill_seconds = time.perf_counter() - start
        for number in range(1, self.settings.max_new_tokens + 1):
            yield from self.take(tokens, last=number == self.settings.max_new_tokens)
            active = sum(r.reason is None for r in self.rows)
            if not active:
                return
            if self._owner() is not owner:
                raise RuntimeInputError("another generation has begun on this session: finish one, or open two")
            start = time.perf_counter()
            # Rows that have ended keep stepping with the others; what they would say is dropped.
            tokens = self.next(tokens)
            self.decode_seconds += time.perf_counter() - start
            self.decode_tokens += active

    def _owner(self) -> object:
        return None if self.shared is None else self.shared.owner

    def next(self, tokens: Array) -> Array:
        """Read a token of each row and choose the next ones, from no more of the logits than is needed."""
        session, settings = self.choosing, self.settings
        free = settings.unchanged and all(r.constraint is None for r in self.rows)
        if session is not None and free and settings.logprobs is None:
            if settings.temperature == 0:
                return certain(session.step_greedy(tokens))
            if settings.top_k is not None and settings.top_k <= MOST_BEST:
                return self.choose(session.step_best(tokens, settings.top_k))
        return self.choose(self.session.step(tokens))

    def choose(self, logits: Array) -> Array:
        allowed = restrict(logits, [r.constraint if r.reason is None else None for r in self.rows])
        processed = self.sampler.processed(allowed, [r.seen for r in self.rows], [len(r.prompt) for r in self.rows])
        tokens = self.sampler.pick(processed)
        if self.settings.logprobs is not None:
            for i, row in enumerate(self.rows):
                if row.reason is None:
                    row.logprobs.append(logprob(int(tokens[i]), logits[i], processed[i], self.settings.logprobs))
        return tokens

    def take(self, tokens: Array, last: bool) -> Iterator[tuple[int, str]]:
        """Give each running row its token; (row, text) for the text that is certain now."""
        for i, (row, token) in enumerate(zip(self.rows, tokens.tolist(), strict=True)):
            if row.reason is None and (text := self.give(row, token, last)):
                yield i, text

    def give(self, row: Row, token: int, last: bool) -> str:
        """Give one running row its token; the text that is certain now."""
        text = ""
        if token in self.ends:
            row.reason = "eos"
        else:
            row.seen.append(token)
            text = row.text.push(token)
            if row.constraint is not None:
                row.constraint.accept(token)
            if row.text.stopped:
                row.reason = "stop"
            elif row.constraint is not None and row.constraint.done:
                row.reason = "eos"
            elif last:
                row.reason = "length"
        if row.reason in ("eos", "length"):
            text += row.text.end()
            row.reason = "stop" if row.text.stopped else row.reason
        return text

    def results(self) -> list[Generation]:
        """What every row came to."""
        timing = Timing(
            sum(len(r.prompt) for r in self.rows),
            sum(len(r.ids) for r in self.rows),
            self.prefill_seconds,
            self.decode_seconds,
            self.decode_tokens,
        )
        return [Generation(r.prompt, r.ids, r.text.text, r.reason or "length", timing, r.logprobs) for r in self.rows]
