"""Requests that have rows: prompts are read in chunks, all rows that are ready take a step together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..backends.onnxruntime import Session
from ..backends.onnxruntime.paired import PROMPT_TOKENS
from ..backends.onnxruntime.prefix import Key, Prefixes, key_of
from ..backends.onnxruntime.rows import rows_of
from ..frontends.tokenizer import Tokenizer
from ..ir.errors import MonographError
from .constraint import restrict
from .errors import GenerationError, SessionError
from .generate import Reason
from .logprobs import Logprob, logprob, logprobs_of
from .request import Piece, Request
from .sampling import Array, Sampler
from .text import RowText

FAILURES = (MonographError, MemoryError, RuntimeError)
"""What a call of the session can end with when it is the session that fails, and no request is wrong."""

OF_A_REQUEST = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What code that a request brings along, such as a constraint, can end with besides."""


@dataclass
class Running:
    """A request that has a row. known: the prompt, and what was chosen. told: of the prompt tokens read so far.
    parting: where a state is kept, because other prompts were seen to go on otherwise (0: nowhere)."""

    request: Request
    row: int
    key: Key
    text: RowText
    sampler: Sampler
    ends: frozenset[int]
    known: list[int]
    read: int = 0
    parting: int = 0
    started: bool = False
    told: list[Logprob | None] = field(default_factory=list["Logprob | None"])

    @property
    def prompt(self) -> list[int]:
        return self.request.asked.prompt

    @property
    def ready(self) -> bool:
        """Whether its prompt is read, so that it takes steps."""
        return self.read == len(self.prompt)

    @property
    def plain(self) -> bool:
        """Whether its next token is the likeliest one, whatever came before."""
        asked = self.request.asked
        settings = asked.settings
        greedy = settings.temperature == 0 and settings.unchanged
        return greedy and asked.settings.logprobs is None and asked.constraint is None


class Batch:
    """The rows of a session, and who has them. For one thread.

    chunk: most tokens of prompts that are read between two steps. ended: called with why a request ends, a reason or
    the name of an error, when its row is free and before whoever waits for it hears of it.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer | None,
        most: int,
        chunk: int,
        prefix_bytes: int,
        ended: Callable[[str], None],
    ) -> None:
        self.tokenizer, self.chunk, self.ended = tokenizer, chunk, ended
        self.rows = rows_of(session, most)
        self.least = PROMPT_TOKENS if session.contract.prompts else 1
        self.prefixes = Prefixes(self.rows, prefix_bytes, least=self.least)
        self.running: list[Running] = []
        self.limit = session.contract.positions
        self.tokens_in = self.tokens_out = 0
        self.broken = False

    @property
    def full(self) -> bool:
        return len(self.running) >= self.rows.most

    @property
    def used(self) -> float:
        """Share of what rows have room for that is taken: of tokens, or of rows where a row may have any number."""
        running = [*self.running]
        if not self.limit:
            return len(running) / self.rows.most
        return sum(len(r.known) for r in running) / (self.rows.most * self.limit)

    def admit(self, request: Request, ends: frozenset[int]) -> None:
        """Give a request a row; one that cannot begin fails."""
        asked = request.asked
        try:
            row = self.rows.join(asked.inputs)
        except FAILURES as e:
            error = e if isinstance(e, MonographError) else failed(e)
            self.ended(type(error).__name__)
            request.fail(error)
            return
        text = RowText(self.tokenizer, asked.settings.stops, asked.prompt)
        sampler = Sampler(asked.settings, 1)
        key = key_of(asked.inputs)
        self.running.append(Running(request, row, key, text, sampler, ends, list(asked.prompt)))

    def leave(self, running: Running, why: str) -> None:
        """Free the row of a request that ends."""
        self.running.remove(running)
        self.rows.leave(running.row)
        self.ended(why)

    def turn(self) -> bool:
        """Read up to a chunk of the prompts that came first, then one step of all rows that are ready.

        False where the session fails whatever is asked of it.
        """
        self.broken, left = False, self.chunk
        for running in [r for r in self.running if not r.ready]:
            left -= self.read(running, left)
            if left <= 0:
                break
        ready = [r for r in self.running if r.ready]
        if ready:
            self.step(ready)
        return not self.broken

    # -- prompts ---------------------------------------------------------------------------------------------------

    def read(self, running: Running, most: int) -> int:
        """Read up to `most` tokens of a prompt; how many."""
        asked, prompt = running.request.asked, running.prompt
        every = asked.settings.prompt_logprobs is not None
        try:
            if not running.started:
                self.begin(running)
            stop = self.stop(running, most)
            part = prompt[running.read : stop]
            logits = self.rows.read(running.row, part, every=every)
            if every:
                self.tell(running, logits)
            running.read = stop
        except FAILURES as e:
            self.fail(running, failed(e))
            self.broken = not self.running
            return most
        if stop in (running.parting, len(prompt)):
            self.keep(running, prompt[:stop], state=stop == running.parting)
        if running.ready:
            self.tokens_in += len(prompt)
            self.choose(running, logits[-1] if every else logits)
        return len(part)

    def stop(self, running: Running, most: int) -> int:
        """Where to stop reading a prompt: after about `most` tokens, or where a state is to be kept.

        Few tokens are multiplied in another way than many by a folder that has a graph for prompts, so that no piece of
        a prompt has so few that the whole would have been read otherwise.
        """
        start, length, least = running.read, len(running.prompt), self.least
        if start < running.parting < start + most and running.parting - start >= least:
            return running.parting
        stop = start + max(most, least)
        return length if length - stop < least else stop

    def begin(self, running: Running) -> None:
        """Lay what is known of a prompt into its row; log-probabilities need every token to be read."""
        running.started = True
        running.parting = self.prefixes.parting(running.key, running.prompt)
        if running.request.asked.settings.prompt_logprobs is None:
            running.read = running.request.cached = self.prefixes.restore(running.row, running.key, running.prompt)

    def tell(self, running: Running, logits: Array) -> None:
        """Note log-probabilities of the prompt tokens that come after each of those just read."""
        top, start = running.request.asked.settings.prompt_logprobs or 0, running.read
        targets = running.prompt[start + 1 : start + 1 + len(logits)]
        running.told = running.told or [None]
        running.told += logprobs_of(logits[: len(targets)], targets, top)
        running.request.prompt_logprobs = running.told

    # -- steps -----------------------------------------------------------------------------------------------------

    def step(self, ready: Sequence[Running]) -> None:
        """One token for each row."""
        by_row = {r.row: r for r in ready}
        plain = all(r.plain for r in ready)
        try:
            order = [by_row[row] for row in self.rows.ordered([*by_row])]
            take = self.rows.step_greedy if plain else self.rows.step
            found = take([r.row for r in order], [r.known[-1] for r in order])
        except FAILURES:
            self.apart(ready)
            return
        if not plain:
            for running, logits in zip(order, found, strict=True):
                self.choose(running, logits)
            return
        for running, token in zip(order, found.tolist(), strict=True):
            if token < 0:
                self.fail(running, GenerationError("the largest logit is not finite: no token can be chosen"))
            else:
                self.take(running, token, [])

    def apart(self, ready: Sequence[Running]) -> None:
        """Step one by one, so that what one row fails of does not hurt the others; if all do, it is the session."""
        failures: list[tuple[Running, Exception]] = []
        for running in ready:
            try:
                logits = self.rows.step([running.row], [running.known[-1]])
            except FAILURES as e:
                failures.append((running, e))
            else:
                self.choose(running, logits[0])
        for running, error in failures:
            self.fail(running, failed(error))
        self.broken = len(failures) == len(ready)

    def choose(self, running: Running, logits: Array) -> None:
        """Choose a token from logits [V], which are read where they lie."""
        asked = running.request.asked
        try:
            held = restrict(logits[None], [asked.constraint])
            processed = running.sampler.processed(held, [running.known], [len(running.prompt)])
            token = int(running.sampler.pick(processed)[0])
        except (*FAILURES, *OF_A_REQUEST) as e:
            self.fail(running, e if isinstance(e, MonographError) else GenerationError(f"{type(e).__name__}: {e}"))
            return
        top = asked.settings.logprobs
        told = [] if top is None else [logprob(token, logits, processed[0], top)]
        self.take(running, token, told)

    def take(self, running: Running, token: int, told: list[Logprob]) -> None:
        """Give a request its token, and end it where that was the last one."""
        self.tokens_out += 1
        try:
            piece = self.piece(running, token, told)
        except (*FAILURES, *OF_A_REQUEST) as e:
            self.fail(running, e if isinstance(e, MonographError) else GenerationError(f"{type(e).__name__}: {e}"))
            return
        if piece.reason is not None:
            self.keep(running, running.known[: self.rows.length(running.row)], state=True)
            self.leave(running, piece.reason)
        running.request.give(piece)

    def piece(self, running: Running, token: int, told: list[Logprob]) -> Piece:
        """What a token brings."""
        if token in running.ends:
            reason: Reason | None = "eos"
            ids, text = list[int](), ""
        else:
            constraint = running.request.asked.constraint
            running.known.append(token)
            ids, text, reason = [token], running.text.push(token), None
            if constraint is not None:
                constraint.accept(token)
            if running.text.stopped:
                reason = "stop"
            elif constraint is not None and constraint.done:
                reason = "eos"
            elif len(running.known) - len(running.prompt) >= running.request.asked.settings.max_new_tokens:
                reason = "length"
        if reason in ("eos", "length"):
            text += running.text.end()
            reason = "stop" if running.text.stopped else reason
        return Piece(ids, text, told, reason)

    def keep(self, running: Running, tokens: Sequence[int], *, state: bool) -> None:
        """Keep what a row has read for prompts that go on from it; where it cannot be, nothing is kept at all."""
        try:
            self.prefixes.save(running.row, running.key, tokens, state=state)
        except FAILURES:
            self.prefixes.clear()

    def fail(self, running: Running, error: MonographError) -> None:
        self.leave(running, type(error).__name__)
        running.request.fail(error)


def failed(error: Any) -> SessionError:
    """The error of a request under which the session failed."""
    what = error.what if isinstance(error, MonographError) else f"{type(error).__name__}: {error}"
    found = SessionError(f"the session failed: {what}")
    found.__cause__ = error
    return found
