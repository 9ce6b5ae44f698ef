"""Speculative decoding: several tokens are guessed, and one call of the model says how many of them it would choose.

Guesses come from a smaller model or from what was said before. Greedy ids are those of plain decoding. Sampled tokens
have the distribution of plain sampling (Leviathan et al. 2023): a guess d, drawn from q, is kept with probability
min(1, p(d) / q(d)); else the token is drawn from what p has over q. A guess from the text is no draw: the token is
drawn from p as ever, and the guess is kept where it is that one, so that with one seed the ids are those of plain
sampling, too. p and q are what temperature and filters leave.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.errors import RuntimeInputError
from .constraint import restrict
from .errors import GenerationError
from .generate import Decoding, Generation, Row
from .guesses import Cuttable, Drafter, Guess
from .logprobs import logprob
from .prompts import pad
from .sampling import Array, draw, process, softmax

_PATIENCE, _PAUSE, _LONGEST_PAUSE = 3, 4, 64


@dataclass(frozen=True, repr=False)
class Speculated(Generation):
    """A generation with what became of the guesses. calls: of the model after the prompt."""

    calls: int = 0
    guessed: int = 0
    accepted: int = 0

    @property
    def accepted_per_call(self) -> float:
        return self.accepted / self.calls if self.calls else 0.0


@dataclass
class Pace:
    """How many tokens to guess for one row: more after guesses that were right, and none for a while after many that
    were wrong."""

    longest: int
    count: int
    wrong: int = 0
    pause: int = _PAUSE
    idle: int = 0
    calls: int = 0
    guessed: int = 0
    accepted: int = 0

    def next(self) -> int:
        if self.idle:
            self.idle -= 1
            return 0
        return self.count

    def saw(self, guessed: int, accepted: int) -> None:
        self.calls, self.guessed, self.accepted = self.calls + 1, self.guessed + guessed, self.accepted + accepted
        if not guessed:
            return
        if accepted == guessed:
            self.count = min(self.longest, self.count + 2)
        else:
            self.count = accepted + 1 if accepted else max(1, self.count // 2)
        if accepted:
            self.wrong, self.pause = 0, _PAUSE
        else:
            self.wrong += 1
        if self.wrong == _PATIENCE:
            self.wrong, self.idle, self.pause = 0, self.pause, min(2 * self.pause, _LONGEST_PAUSE)


class Speculative(Decoding):
    """A batch that is decoded by guesses. longest: most tokens guessed at once."""

    def __init__(self, session: Cuttable, *given: Any, drafter: Drafter, longest: int, **named: Any) -> None:
        super().__init__(session, *given, **named)
        if session.uncut:
            raise RuntimeInputError(f"guesses cannot be taken back: {session.uncut}")
        self.cuttable, self.drafter = session, drafter
        self.paces = [Pace(longest, min(longest, 4)) for _ in self.rows]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        start = time.perf_counter()
        logits = self.read(*pad([r.prompt for r in self.rows]))
        owner = self._owner()
        tokens = self.choose(logits)
        self.drafter.begin(self.rows, logits.shape[-1])
        self.prefill_seconds = time.perf_counter() - start
        yield from self.take(tokens, last=self.settings.max_new_tokens == 1)
        running = list(range(len(self.rows)))
        while running := self.still(running):
            if self._owner() is not owner:
                raise RuntimeInputError("another generation has begun on this session: finish one, or open two")
            start = time.perf_counter()
            texts = self.round(running)
            self.decode_seconds += time.perf_counter() - start
            yield from texts

    def still(self, running: list[int]) -> list[int]:
        """Rows that have not ended; those that have leave the session and the drafter."""
        places = [k for k, i in enumerate(running) if self.rows[i].reason is None]
        if 0 < len(places) < len(running):
            self.cuttable.reorder(places)
            self.drafter.keep(places)
        return [running[k] for k in places]

    def round(self, running: list[int]) -> list[tuple[int, str]]:
        """Guess, ask once, keep what is right."""
        rows = [self.rows[i] for i in running]
        streams = [self.sampler.streams[i] for i in running] if self.sampler.streams else []
        most = (self.settings.max_new_tokens - len(r.ids) - 1 for r in rows)
        counts = [min(self.paces[i].next(), n) for i, n in zip(running, most, strict=True)]
        guesses = self.drafter.guess(rows, counts, streams)
        before = self.session.lengths
        answers = self.ask([[r.seen[-1], *g.tokens] for r, g in zip(rows, guesses, strict=True)])
        texts: list[tuple[int, str]] = []
        right = np.zeros(len(rows), np.int64)
        for k, (i, row, guess) in enumerate(zip(running, rows, guesses, strict=True)):
            stream = streams[k] if streams else None
            new, old = list[str](), len(row.seen)
            for at, x in enumerate(answers[k, : len(guess.tokens) + 1]):
                token, kept = self.pick(row, x, guess, at, stream)
                new.append(self.give(row, token, last=len(row.ids) + 1 >= self.settings.max_new_tokens))
                right[k] += kept
                if not kept or row.reason is not None:
                    break
            self.decode_tokens += len(row.seen) - old
            self.paces[i].saw(len(guess.tokens), int(right[k]))
            if text := "".join(new):
                texts.append((i, text))
        lengths = before + 1 + right
        if not np.array_equal(lengths, self.session.lengths):
            self.cuttable.truncate(lengths)
        return texts

    def ask(self, tokens: list[list[int]]) -> Array:
        """Read each row's tokens; logits [B,S,V] after every one."""
        wide, lengths = pad(tokens)
        if wide.shape[1] == 1:
            return self.session.step(wide[:, 0])[:, None]
        return self.cuttable.append(wide, lengths, every=True)

    def pick(self, row: Row, logits: Array, guess: Guess, at: int, stream: Any) -> tuple[int, bool]:
        """(the next token, whether it is the guess and the next answer is of use)."""
        x = process(restrict(logits[None], [row.constraint]), [row.seen], self.settings, [len(row.prompt)])[0]
        best = int(x.argmax())
        if not np.isfinite(x[best]):
            raise GenerationError(f"the largest logit of a row is {x[best]}: no token can be chosen")
        guessed = guess.tokens[at] if at < len(guess.tokens) else None
        if stream is None or guessed is None or not guess.chances:
            token = best if stream is None else draw(x, stream.random())
            kept = token == guessed
        else:
            token, kept = verdict(softmax(x), guess.chances[at], guessed, stream)
        if self.settings.logprobs is not None:
            row.logprobs.append(logprob(token, logits, x, self.settings.logprobs))
        return token, kept

    def results(self) -> list[Generation]:
        found = zip(super().results(), self.paces, strict=True)
        return [Speculated(**vars(g), calls=p.calls, guessed=p.guessed, accepted=p.accepted) for g, p in found]


def verdict(p: Array, q: Array, guessed: int, stream: np.random.Generator) -> tuple[int, bool]:
    """The guess, drawn from q, or a token of what p has over q, so that the result is a draw from p."""
    if stream.random() * q[guessed] < p[guessed]:
        return guessed, True
    left = np.maximum(p - q, 0)
    with np.errstate(divide="ignore"):
        token = draw(np.log(left if left.any() else p), stream.random())
    return token, False
