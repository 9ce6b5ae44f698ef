"""Beam search: the likeliest whole texts, by transformers' rules for lengths, ends and ties.

A beam's score is the sum of the log-probabilities of its tokens; a text that has ended is held by its score divided by
its length to the power of `length_penalty`. Each prompt has `num_beams` rows of the session. A beam that goes on stays
in its row; where a row dies, it becomes a copy of the row that its new beam comes from, from the first token on at
which the two differ. What an encoder left behind is the same for all beams of a prompt and is never copied again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, Protocol

import numpy as np

from ..frontends.tokenizer import Tokenizer
from ..ir.errors import RuntimeInputError
from . import generate
from .generate import Generation, Reason, Settings, Timing
from .prompts import pad
from .sampling import Array, penalize, without
from .text import RowText

_LOW = np.float32(-1e9)
"""The score of what cannot be chosen."""


class Session(generate.Session, Protocol):
    """A session whose rows can become other rows."""

    def reorder(self, parents: Any, common: Any = None) -> None: ...


MOST_BEAMS = 1024
"""Rows that a session has for one prompt: their caches lie side by side in memory."""


@dataclass(frozen=True)
class Beams:
    """num_beams: texts that are followed at once, at most MOST_BEAMS. num_return_sequences: how many of them are given.

    length_penalty: above 0 longer texts are better off, below 0 shorter ones. early_stopping: True: a prompt is done as
    soon as num_beams texts have ended; False: when the best that runs could not beat them at its present length;
    "never": when it could not at any length. min_new_tokens: least tokens before an end.
    """

    num_beams: int
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num_beams", 1), ("num_return_sequences", 1), ("min_new_tokens", 0)):
            value: Any = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
                raise RuntimeInputError(f"{name} is {value!r}, expected a whole number of at least {least}")
        if self.num_beams > MOST_BEAMS:
            raise RuntimeInputError(f"num_beams is {self.num_beams}, expected at most {MOST_BEAMS}")
        if self.num_return_sequences > self.num_beams:
            what = f"num_return_sequences is {self.num_return_sequences}, but there are {self.num_beams} beams"
            raise RuntimeInputError(what)
        penalty: Any = self.length_penalty
        if not isinstance(penalty, Real) or not np.isfinite(float(penalty)):
            raise RuntimeInputError(f"length_penalty is {self.length_penalty!r}, expected a number")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise RuntimeInputError(f"early_stopping is {self.early_stopping!r}, expected True, False or 'never'")


@dataclass(frozen=True, repr=False)
class Scored(Generation):
    """A generation by beams. score: sum of log-probabilities / length ** length_penalty, its end token included."""

    score: float = 0.0


class BeamSearch:
    """A batch of prompts on its way; iterating runs it, and gives (row, text) of the best texts at the end.

    read: reads prompts as `Session.prefill` does. suppress, suppress_first: ids that are never given, and not as the
    first token. Raises RuntimeInputError for settings that beams do not have.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer | None,
        rows: Sequence[list[int]],
        settings: Settings,
        read: Callable[[Array, Array], Array] | None,
        beams: Beams,
        *,
        suppress: Sequence[int] = (),
        suppress_first: Sequence[int] = (),
    ) -> None:
        settings.check(rows)
        if settings.temperature:
            raise RuntimeInputError(f"temperature is {settings.temperature}, but beams are not drawn: expected 0")
        if settings.told:
            raise RuntimeInputError("beams have no logit_bias, frequency_penalty and presence_penalty")
        if settings.stops:
            raise RuntimeInputError(f"stop strings {list(settings.stops)} are not looked for in beams")
        if settings.logprobs is not None or settings.prompt_logprobs is not None:
            raise RuntimeInputError("log-probabilities of tokens are not told of beams, which have a score")
        self.session, self.tokenizer, self.settings, self.beams = session, tokenizer, settings, beams
        self.read = read or session.prefill
        self.ends = np.array(sorted(settings.ends(tokenizer)), np.int64)
        self.suppress, self.suppress_first = list(suppress), list(suppress_first)
        self.groups = [Group(list(row), beams, settings.max_new_tokens) for row in rows]
        self.prefill_seconds = self.decode_seconds = 0.0
        self.decode_tokens = 0

    def __iter__(self) -> Iterator[tuple[int, str]]:
        start, count = time.perf_counter(), self.beams.num_beams
        logits = self.read(*pad([g.prompt for g in self.groups]))
        owner = self._owner()
        running = list(self.groups)
        for group, row in zip(running, self.scored(running, logits, first=True), strict=True):
            group.advance(np.tile(row, (count, 1)), self.ends)
        running = self.spread(running)
        self.prefill_seconds = time.perf_counter() - start
        start = time.perf_counter()
        while running:
            if self._owner() is not owner:
                raise RuntimeInputError("another generation has begun on this session: finish one, or open two")
            logits = self.session.step(np.concatenate([g.newest for g in running]))
            found = self.scored(running, logits, first=False).reshape(len(running), count, -1)
            for group, rows in zip(running, found, strict=True):
                group.advance(rows[group.places], self.ends)
            self.decode_tokens += len(running)
            running = self.moved(running)
        self.decode_seconds = time.perf_counter() - start
        for i, group in enumerate(self.groups):
            yield i, self.text(group, group.best()[0][0])[1].text

    def _owner(self) -> object:
        return self.session.owner if isinstance(self.session, generate.Shared) else None

    def scored(self, running: Sequence[Group], logits: Array, *, first: bool) -> Array:
        """Log-probabilities f32, with penalty, and -inf for what may not come."""
        x = logits.astype(np.float32)
        x = x - x.max(axis=-1, keepdims=True)
        x -= np.log(np.exp(x).sum(axis=-1, keepdims=True))
        if self.settings.repetition_penalty != 1.0:
            x = penalize(x, [s for g in running for s in g.seen(first=first)], self.settings.repetition_penalty)
        if running[0].count < self.beams.min_new_tokens:
            x = without(x, self.ends)
        never = [*self.suppress, *(self.suppress_first if first else ())]
        return without(x, never) if never else x

    def spread(self, running: list[Group]) -> list[Group]:
        """A row of the session for every beam of the prompts that go on."""
        kept = [i for i, g in enumerate(running) if not g.done]
        if kept:
            self.session.reorder(np.repeat(kept, self.beams.num_beams))
        return [running[i] for i in kept]

    def moved(self, running: list[Group]) -> list[Group]:
        """Rows of the session as the beams want them; the prompts that go on."""
        kept = [i for i, g in enumerate(running) if not g.done]
        if not kept:
            return []
        count, going = self.beams.num_beams, [running[i] for i in kept]
        moves = [g.moves() for g in going]
        parents = np.concatenate([p + i * count for i, (p, _) in zip(kept, moves, strict=True)])
        self.session.reorder(parents, np.concatenate([c for _, c in moves]))
        return going

    def results(self) -> list[Any]:  # Scored for each prompt, or a list of num_return_sequences of them
        """The best texts of every prompt, the best first."""
        tokens = sum(len(ids) for g in self.groups for ids, _ in g.best())
        timing = Timing(
            sum(len(g.prompt) for g in self.groups),
            tokens,
            self.prefill_seconds,
            self.decode_seconds,
            self.decode_tokens,
        )
        found = [[self.result(g, ids, score, timing) for ids, score in g.best()] for g in self.groups]
        return [some[0] for some in found] if self.beams.num_return_sequences == 1 else list(found)

    def result(self, group: Group, ids: list[int], score: float, timing: Timing) -> Scored:
        kept, row, reason = self.text(group, ids)
        return Scored(group.prompt, kept, row.text, reason, timing, score=score)

    def text(self, group: Group, ids: list[int]) -> tuple[list[int], RowText, Reason]:
        """(ids without the end token, their text, why they end)."""
        ended = bool(ids) and ids[-1] in self.ends
        kept = ids[:-1] if ended else ids
        row = RowText(self.tokenizer, (), group.prompt)
        for token in kept:
            row.push(token)
        row.end()
        return kept, row, "eos" if ended else "length"


class Group:
    """The beams of one prompt.

    tokens i64 [n,count], scores f32 [n]: of the beams that run, the best first. places: row of the session, within
    those of the prompt, of each. finished: ids and scores of the best texts that have ended.
    """

    def __init__(self, prompt: list[int], beams: Beams, longest: int) -> None:
        self.prompt, self.beams, self.longest = prompt, beams, longest
        n = beams.num_beams
        self.count = 0
        self.tokens: Array = np.zeros((n, 0), np.int64)
        self.scores: Array = np.where(np.arange(n) == 0, np.float32(0), _LOW)
        self.places: Array = np.arange(n)
        self.parents: Array = np.arange(n)
        self.before: Array = self.tokens
        self.finished: list[list[int]] = [[] for _ in range(n)]
        self.finished_scores: Array = np.full(n, _LOW, np.float32)
        self.ended: Array = np.zeros(n, np.bool_)
        self.hopeful = True
        self.done = False

    @property
    def newest(self) -> Array:
        """The last token of each beam, by row of the session."""
        found = np.empty(len(self.tokens), np.int64)
        found[self.places] = self.tokens[:, -1]
        return found

    def seen(self, *, first: bool) -> list[list[int]]:
        """Prompt and tokens by row of the session; before the first token there is one row."""
        if first:
            return [self.prompt]
        found: list[list[int]] = [[] for _ in self.places]
        for place, tokens in zip(self.places.tolist(), self.tokens.tolist(), strict=True):
            found[place] = [*self.prompt, *tokens]
        return found

    def advance(self, log_probs: Array, ends: Array) -> None:
        """One more token for every beam, from log-probabilities [n,V]; texts that end are kept if they are better."""
        n, width = log_probs.shape
        summed = (log_probs + self.scores[:, None]).reshape(-1)
        chosen = largest(summed, min(max(2, 1 + len(ends)) * n, len(summed)))
        parents, tokens, scores = chosen // width, chosen % width, summed[chosen]
        over = self.count + 1 >= self.longest
        hit = np.ones(len(chosen), np.bool_) if over else np.isin(tokens, ends)
        self.finish(parents, tokens, scores, hit)
        going = np.where(hit, scores + _LOW, scores)
        next_ = largest(going, n)
        self.before, self.parents = self.tokens, parents[next_]
        self.tokens = np.concatenate([self.tokens[self.parents], tokens[next_][:, None]], axis=1)
        self.scores = going[next_].astype(np.float32)
        self.count += 1
        self.judge(hit)

    def finish(self, parents: Array, tokens: Array, scores: Array, hit: Array) -> None:
        """Enter texts that have just ended, if they are among the n best candidates."""
        n, early = len(self.ended), self.beams.early_stopping is True
        just = hit & (np.arange(len(hit)) < n)
        held = scores / np.float32((self.count + 1) ** self.beams.length_penalty)
        held = held + _LOW * np.float32(early and bool(self.ended.all())) + _LOW * np.float32(not self.hopeful)
        held = held + _LOW * (~just).astype(np.float32)
        merged = np.concatenate([self.finished_scores, held.astype(np.float32)])
        best = largest(merged, n)
        known = self.finished
        self.finished = [
            known[i] if i < n else [*self.tokens[parents[i - n]].tolist(), int(tokens[i - n])] for i in best.tolist()
        ]
        self.finished_scores = merged[best]
        self.ended = np.concatenate([self.ended, just])[best]

    def judge(self, hit: Array) -> None:
        """Whether anything that runs may still be better than what has ended."""
        beams = self.beams
        far = beams.early_stopping == "never" and beams.length_penalty > 0
        length = self.longest if far else self.count
        possible = self.scores[0] / np.float32(length**beams.length_penalty)
        worst = np.where(self.ended, self.finished_scores.min(), _LOW)
        self.hopeful = self.hopeful and bool((possible > worst).any())
        full = beams.early_stopping is True and bool(self.ended.all())
        self.done = not self.hopeful or full or bool(hit.all())

    def moves(self) -> tuple[Array, Array]:
        """(for each row of the session the row that it becomes, how many tokens the two have in common)."""
        holders = np.argsort(self.places)
        sources = self.places[self.parents]
        places = np.full(len(sources), -1)
        taken: set[int] = set()
        for beam, source in enumerate(sources.tolist()):
            if source not in taken:
                places[beam] = source
                taken.add(source)
        free = iter(r for r in range(len(sources)) if r not in taken)
        for beam in np.flatnonzero(places < 0).tolist():
            places[beam] = next(free)
        rows, common = np.empty_like(places), np.empty_like(places)
        rows[places] = sources
        different = self.before[holders] != self.before[holders[rows]]
        width = self.before.shape[1]
        common[:] = np.where(different.any(axis=1), different.argmax(axis=1) if width else 0, width)
        self.places = places
        return rows, common + len(self.prompt)

    def best(self) -> list[tuple[list[int], float]]:
        """Ids with the end token, and scores, of the texts that are given."""
        count = self.beams.num_return_sequences
        return list(zip(self.finished[:count], self.finished_scores[:count].tolist(), strict=True))


def largest(x: Array, count: int) -> Array:
    """Indices of the `count` largest, the largest first; of equal ones the earlier."""
    kept = np.argpartition(-x, count - 1)[:count] if count < len(x) else np.arange(len(x))
    kept = np.sort(kept)
    return kept[np.argsort(-x[kept], kind="stable")]
