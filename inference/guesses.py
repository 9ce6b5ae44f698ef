"""Where the guesses of speculative decoding come from: the text so far, or a smaller model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..ir.errors import RuntimeInputError
from .generate import Row, Session, Settings
from .prompts import pad
from .sampling import Array, draw, process, softmax

LONGEST = 32
"""Most tokens that may be guessed at once."""
STEPS = 2
"""Most tokens that a draft reads one by one: kernels of weights in few bits read two at once slower than that."""
WIDEST, LEAST = 4, 2
"""How many of the newest tokens are looked up, at most and at least."""


class Cuttable(Session, Protocol):
    """A session that reads several tokens, answers after each, and forgets them again."""

    @property
    def uncut(self) -> str:
        """Why rows cannot be cut after a few more tokens; "" where they can."""
        ...

    def append(self, tokens: Any, lengths: Any = None, *, every: bool = False) -> Array: ...

    def truncate(self, lengths: Any) -> None: ...

    def reorder(self, parents: Any, common: Any = None) -> None: ...


@dataclass
class Guess:
    """Tokens that may come next. chances: the distribution each was drawn from, [V]; empty where none was drawn."""

    tokens: list[int] = field(default_factory=list[int])
    chances: list[Array] = field(default_factory=list[Array])


class Drafter(Protocol):
    """Where guesses come from, for rows that are named by their places among those that still run."""

    def begin(self, rows: Sequence[Row], vocabulary: int) -> None:
        """Read the prompts. vocabulary: how many tokens the model has; raises RuntimeInputError for another number."""
        ...

    def guess(self, rows: Sequence[Row], counts: Sequence[int], streams: Sequence[np.random.Generator]) -> list[Guess]:
        """At most counts[b] tokens that may follow what each row has seen; streams: empty for greedy decoding."""
        ...

    def keep(self, places: Sequence[int]) -> None:
        """Go on with the rows at these places only."""
        ...


class Lookup:
    """Guesses from the text: what followed the last time that the newest tokens stood there."""

    def begin(self, rows: Sequence[Row], vocabulary: int) -> None: ...

    def guess(self, rows: Sequence[Row], counts: Sequence[int], streams: Sequence[np.random.Generator]) -> list[Guess]:
        return [Guess(followers(r.seen, n)) for r, n in zip(rows, counts, strict=True)]

    def keep(self, places: Sequence[int]) -> None: ...


def followers(seen: Sequence[int], count: int) -> list[int]:
    """At most `count` tokens after the last earlier place of the newest WIDEST tokens, or of as many as occur."""
    text = np.asarray(seen, np.int64)
    for width in range(min(WIDEST, len(text) - 1), LEAST - 1, -1) if count else ():
        windows = np.lib.stride_tricks.sliding_window_view(text[:-1], width)
        places = np.flatnonzero((windows == text[-width:]).all(axis=1))
        if len(places):
            start = int(places[-1]) + width
            return text[start : start + count].tolist()
    return []


class Draft:
    """Guesses by a smaller model over the same tokens.

    read: as `Session.prefill`. limit: its positions; where a prompt has more tokens, nothing is guessed. bound: the ids
    that it can read (None: not known).
    """

    def __init__(
        self,
        session: Cuttable,
        read: Callable[[Array, Array], Array],
        settings: Settings,
        limit: int,
        bound: int | None = None,
    ) -> None:
        if session.uncut:
            raise RuntimeInputError(f"the draft cannot go back: {session.uncut}")
        self.session, self.read, self.settings, self.limit, self.bound = session, read, settings, limit, bound
        self.known: list[list[int]] = []
        self.idle = False

    def begin(self, rows: Sequence[Row], vocabulary: int) -> None:
        if self.bound is not None and self.bound != vocabulary:
            raise RuntimeInputError(f"the draft has {self.bound:,} tokens, the model {vocabulary:,}")
        self.idle = max(len(r.prompt) for r in rows) > self.limit
        if self.idle:
            return
        width = self.read(*pad([r.prompt for r in rows])).shape[-1]
        if width != vocabulary:
            raise RuntimeInputError(f"the draft has {width:,} tokens, the model {vocabulary:,}")
        self.known = [list(r.prompt) for r in rows]

    def guess(self, rows: Sequence[Row], counts: Sequence[int], streams: Sequence[np.random.Generator]) -> list[Guess]:
        guesses = [Guess() for _ in rows]
        longest = min(max(counts), self.limit - max(len(r.seen) for r in rows))
        if self.idle or longest < 1:
            return guesses
        logits = self.catch_up(rows)
        for i in range(longest):
            for k, (row, guess) in enumerate(zip(rows, guesses, strict=True)):
                if i < counts[k]:
                    self.choose(row, guess, logits[k], streams[k] if streams else None)
            if i + 1 < longest:
                tokens = [g.tokens[-1] if g.tokens else r.seen[-1] for r, g in zip(rows, guesses, strict=True)]
                logits = self.session.step(np.array(tokens))
                for known, token in zip(self.known, tokens, strict=True):
                    known.append(token)
        return guesses

    def catch_up(self, rows: Sequence[Row]) -> Array:
        """Forget guesses that were not kept, read what was chosen instead; logits [B,V] after that."""
        shared = [alike(known, r.seen) for known, r in zip(self.known, rows, strict=True)]
        if shared != self.session.lengths.tolist():
            self.session.truncate(shared)
        tokens, counts = pad([r.seen[n:] for r, n in zip(rows, shared, strict=True)])
        self.known = [list(r.seen) for r in rows]
        if int(counts.min()) < int(counts.max()) or len(tokens[0]) > STEPS:
            return self.session.append(tokens, counts)
        logits = self.session.step(tokens[:, 0])
        for column in tokens.T[1:]:
            logits = self.session.step(column)
        return logits

    def choose(self, row: Row, guess: Guess, logits: Array, stream: np.random.Generator | None) -> None:
        x = process(logits[None], [[*row.seen, *guess.tokens]], self.settings, [len(row.prompt)])[0]
        if stream is None:
            guess.tokens.append(int(x.argmax()))
        else:
            guess.tokens.append(draw(x, stream.random()))
            guess.chances.append(softmax(x))

    def keep(self, places: Sequence[int]) -> None:
        if self.idle:
            return
        self.session.reorder(list(places))
        self.known = [self.known[k] for k in places]


def alike(known: Sequence[int], seen: Sequence[int]) -> int:
    """How many first tokens two rows have in common, the last of `seen` not among them."""
    a, b = np.asarray(known, np.int64), np.asarray(seen[:-1], np.int64)
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size
