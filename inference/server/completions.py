"""POST /v1/completions: text that goes on from prompts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from ..generate import Settings
from ..request import Piece, Request
from .answers import FINISH, Answer, Head, TextLogprobs, kept, usage
from .sampling import check_choices, check_stream, choices_of, format_constraint, settings_of
from .schemas import Completion, texts_or_ids
from .service import Service, pieces

DEFAULT_TOKENS = 16
"""What OpenAI gives when max_tokens is not said."""


@dataclass
class Prompt:
    """One prompt with what its choices begin with, if they echo it."""

    ids: list[int]
    text: str


class Completing:
    """One request on its way. `async with` submits and, in the end, cancels what still runs."""

    def __init__(self, service: Service, body: Completion, prompts: list[Prompt], requests: list[Request]) -> None:
        self.service, self.body, self.prompts, self.requests = service, body, prompts, requests
        self.count = len(requests) // len(prompts)
        self.head = Head("text_completion", body.model or service.name, "cmpl", service.fingerprint)

    @property
    def silent(self) -> bool:
        """Whether nothing is to come after the prompts, such as where only their log-probabilities are asked for."""
        return self.body.max_tokens == 0

    def prompt(self, index: int) -> Prompt:
        """The prompt of a choice."""
        return self.prompts[index // self.count]

    def usage(self) -> Answer:
        new = 0 if self.silent else sum(len(r.result(0).ids) for r in self.requests)
        cached = sum(r.cached for r in self.requests[:: self.count])
        return usage(sum(len(p.ids) for p in self.prompts), cached, new)

    async def whole(self) -> Answer:
        """The answer in one piece."""
        async for _ in pieces(self.requests):
            pass
        choices = [self._choice(i, r) for i, r in enumerate(self.requests)]
        return self.head.fill(choices, usage=self.usage())

    def _choice(self, index: int, request: Request) -> Answer:
        body, found, prompt = self.body, request.result(0), self.prompt(index)
        if self.silent:
            found = replace(found, ids=[], text="", reason="length", logprobs=[])
        told = TextLogprobs(self.service.engine.tokenizer, body.logprobs or 0)
        logprobs = None
        if body.logprobs is not None:
            before = found.prompt_logprobs if body.echo else []
            ids = [*(prompt.ids if body.echo else ()), *found.ids]
            logprobs = told.tell([*before, *found.logprobs[: len(found.ids)]], ids)
        choice: Answer = {
            "index": index,
            "text": (prompt.text if body.echo else "") + found.text,
            "logprobs": logprobs,
            "finish_reason": FINISH[found.reason],
        }
        return {**choice, "token_ids": found.ids, "prompt_token_ids": prompt.ids} if body.return_token_ids else choice

    async def chunks(self) -> AsyncGenerator[Answer]:
        """The answer as it comes."""
        options, body = self.body.stream_options, self.body
        with_usage = options is not None and options.include_usage
        more: Answer = {"usage": None} if with_usage else {}
        tellers = [TextLogprobs(self.service.engine.tokenizer, body.logprobs or 0) for _ in self.requests]
        begun: set[int] = set()
        told = body.logprobs is not None or body.return_token_ids
        async for index, piece in pieces(self.requests):
            if self.silent:
                piece = Piece(reason="length")
            first = index not in begun
            begun.add(index)
            if piece.text or piece.reason or told or (first and body.echo):
                yield self.head.fill([self._delta(index, piece, tellers[index], first)], **more)
        if with_usage:
            yield self.head.fill([], usage=self.usage())

    def _delta(self, index: int, piece: Piece, told: TextLogprobs, first: bool) -> Answer:
        body, prompt = self.body, self.prompt(index)
        echo = bool(body.echo) and first
        logprobs = None
        if body.logprobs is not None:
            before = self.requests[index].prompt_logprobs if echo else []
            logprobs = told.tell([*before, *kept(piece)], [*(prompt.ids if echo else ()), *piece.ids])
        choice: Answer = {
            "index": index,
            "text": (prompt.text if echo else "") + piece.text,
            "logprobs": logprobs,
            "finish_reason": None if piece.reason is None else FINISH[piece.reason],
        }
        if body.return_token_ids:
            choice |= {"token_ids": piece.ids, **({"prompt_token_ids": prompt.ids} if first else {})}
        return choice


def new_tokens(service: Service, body: Completion, ids: list[int]) -> int | None:
    """How many tokens to ask for: without a number the usual ones, or as many as the context leaves; at least one,
    which every row of a scheduler gives."""
    if body.max_tokens is not None:
        return max(1, body.max_tokens)
    positions = service.positions
    return None if positions is not None and len(ids) + DEFAULT_TOKENS > positions else DEFAULT_TOKENS


async def complete(service: Service, body: Completion, stack: AsyncExitStack) -> Completing:
    """Submit what a request asks for; `stack` cancels it. Raises HttpError."""
    adapter = service.model(body.model)
    check_stream(body)
    given = texts_or_ids(body.prompt, "prompt", service.limits.prompts)
    count = check_choices(service.limits, body.n, len(given))
    constraint = await format_constraint(service, body.response_format)
    prompts: list[Prompt] = []
    asked: list[tuple[list[int], Settings]] = []
    for prompt in given:
        ids = await service.encode(prompt, "prompt")
        known = service.engine.tokenizer if body.echo else None
        text = prompt if isinstance(prompt, str) else known.decode(ids) if known is not None else ""
        prompts.append(Prompt(ids, text))
        settings = settings_of(service, body, ids, new_tokens(service, body, ids), param="prompt")
        asked += [(ids, s) for s in choices_of(settings, count)]
    requests = await stack.enter_async_context(
        service.running(
            asked,
            adapter=adapter,
            logprobs=body.logprobs,
            prompt_logprobs=body.logprobs if body.echo else None,
            constraints=None if constraint is None else [constraint() for _ in asked],
        )
    )
    return Completing(service, body, prompts, requests)
