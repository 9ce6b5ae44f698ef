"""POST /v1/chat/completions: what the model says next in a conversation."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack
from typing import Any

from ...frontends.chat import chat_templates
from ..request import Piece, Request
from .answers import FINISH, Answer, Head, chat_logprobs, kept, usage
from .constraints import constraint_of
from .errors import HttpError
from .limits import Limits
from .sampling import check_choices, check_stream, choices_of, format_constraint, settings_of
from .schemas import Chat, Message
from .service import Service, pieces
from .tools import Call, Calling, Tools


class Chatting:
    """One request on its way, which has been submitted."""

    def __init__(self, service: Service, body: Chat, tools: Tools, prompt: list[int], requests: list[Request]) -> None:
        self.service, self.body, self.tools, self.prompt, self.requests = service, body, tools, prompt, requests
        self.head = Head("chat.completion", body.model or service.name, "chatcmpl", service.fingerprint)

    def usage(self) -> Answer:
        new = sum(len(r.result(0).ids) for r in self.requests)
        return usage(len(self.prompt), self.requests[0].cached, new)

    async def whole(self) -> Answer:
        """The answer in one piece."""
        async for _ in pieces(self.requests):
            pass
        choices = [self._choice(i, r) for i, r in enumerate(self.requests)]
        more: Answer = {"prompt_token_ids": self.prompt} if self.body.return_token_ids else {}
        return self.head.fill(choices, usage=self.usage(), **more)

    def _choice(self, index: int, request: Request) -> Answer:
        found = request.result(0)
        calling = self.tools.calling()
        content = calling.push(found.text)
        rest, calls = calling.end()
        message: Answer = {"role": "assistant", "content": content + rest, "refusal": None}
        if calls:
            message |= {"content": message["content"] or None, "tool_calls": [c.json() for c in calls]}
        choice: Answer = {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(found.logprobs[: len(found.ids)]),
            "finish_reason": "tool_calls" if calls else FINISH[found.reason],
        }
        return {**choice, "token_ids": found.ids} if self.body.return_token_ids else choice

    def _logprobs(self, found: Any) -> Answer | None:
        service = self.service
        return chat_logprobs(service.engine.tokenizer, found, service.spelling) if self.body.logprobs else None

    async def chunks(self) -> AsyncGenerator[Answer]:
        """The answer as it comes. Text that may be a call is held until that is certain."""
        options = self.body.stream_options
        with_usage = options is not None and options.include_usage
        more: Answer = {"usage": None} if with_usage else {}
        callings = [self.tools.calling() for _ in self.requests]
        kind = "chat.completion.chunk"
        for index in range(len(self.requests)):
            role = {
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            yield self.head.fill([role], kind=kind, **more)
        async for index, piece in pieces(self.requests):
            for choice in self._deltas(index, piece, callings[index]):
                yield self.head.fill([choice], kind=kind, **more)
        if with_usage:
            yield self.head.fill([], kind=kind, usage=self.usage())

    def _deltas(self, index: int, piece: Piece, calling: Calling) -> list[Answer]:
        text, calls = calling.push(piece.text), list[Call]()
        if piece.reason is not None:
            rest, calls = calling.end()
            text += rest
        ids = {"token_ids": piece.ids} if self.body.return_token_ids else {}
        common: Answer = {"index": index, "logprobs": None, "finish_reason": None}
        found: list[Answer] = []
        if text or (piece.ids and (self.body.logprobs or ids)):
            found.append({**common, "delta": {"content": text}, "logprobs": self._logprobs(kept(piece)), **ids})
        if calls:
            found.append({**common, "delta": {"tool_calls": [c.json(i) for i, c in enumerate(calls)]}})
        if piece.reason is not None:
            found.append({**common, "delta": {}, "finish_reason": "tool_calls" if calls else FINISH[piece.reason]})
        return found


async def chat(service: Service, body: Chat, stack: AsyncExitStack) -> Chatting:
    """Submit what a request asks for; `stack` cancels it. Raises HttpError."""
    adapter = service.model(body.model)
    check_stream(body)
    count = check_choices(service.limits, body.n, 1)
    if body.top_logprobs and not body.logprobs:
        raise HttpError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    tools = Tools.of(body, service.limits)
    constraint = await constrained(service, body, tools)
    messages = conversation(body.messages, service.limits)
    text = await service.thread(render, service, messages, tools, body.chat_template_kwargs or {})
    ids = await service.thread(service.tokenizer.encode, text, add_special=False)
    new = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    settings = settings_of(service, body, ids, new, param="messages")
    asked = [(ids, s) for s in choices_of(settings, count)]
    if body.logprobs:
        await service.thread(service.spelling, ids[0])  # reads the vocabulary when it is first asked
    requests = await stack.enter_async_context(
        service.running(
            asked,
            adapter=adapter,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            constraints=None if constraint is None else [constraint() for _ in asked],
        )
    )
    return Chatting(service, body, tools, ids, requests)


async def constrained(service: Service, body: Chat, tools: Tools) -> Callable[[], Any] | None:
    """Makes the constraints of the answer: a call that was required, or the response format."""
    if tools.schema is not None:
        return await constraint_of(service, tools.schema, "tools")
    return await format_constraint(service, body.response_format)


def conversation(messages: list[Message], limits: Limits) -> list[Answer]:
    """Messages as chat templates read them. Raises HttpError 400 for too many, and for parts that are not text."""
    if len(messages) > limits.messages:
        what = f"messages holds {len(messages)}, expected at most {limits.messages}"
        raise HttpError(400, what, param="messages")
    found: list[Answer] = []
    for i, message in enumerate(messages):
        plain: Answer = {"role": "system" if message.role == "developer" else message.role}
        plain["content"] = _content(message, i)
        if message.tool_calls:
            plain["tool_calls"] = [_called(c.model_dump(exclude_none=True), i) for c in message.tool_calls]
        for name in ("name", "tool_call_id", "reasoning_content", "reasoning"):
            value = getattr(message, name)
            if value is not None:
                plain[name] = value
        if plain["content"] is None and message.refusal is not None:
            plain["content"] = message.refusal
        if plain["content"] is None and not message.tool_calls:
            what = f"messages.{i} has no content"
            raise HttpError(400, what, param=f"messages.{i}.content", code="missing_required_parameter")
        found.append(plain)
    return found


def _content(message: Message, index: int) -> str | None:
    if not isinstance(message.content, list):
        return message.content
    for i, part in enumerate(message.content):
        if part.said is None:
            place = f"messages.{index}.content.{i}"
            what = f"{place} is of type {part.type[:40]!r}, but this model reads text only"
            raise HttpError(400, what, param=place, code="unsupported_content")
    return "\n".join(part.said or "" for part in message.content)


def _called(call: Answer, index: int) -> Answer:
    """A call of an earlier turn, its arguments as the object that templates expect."""
    try:
        arguments = json.loads(call["function"]["arguments"] or "{}")
    except (ValueError, RecursionError):
        place = f"messages.{index}.tool_calls"
        raise HttpError(400, f"{place} has arguments that are not JSON", param=place) from None
    return {**call, "function": {**call["function"], "arguments": arguments}}


def render(service: Service, messages: list[Answer], tools: Tools, variables: Answer) -> str:
    """The prompt of a conversation, by the template of the model in its own process.

    Tools go to a template that reads them; else they are told in the system message.
    """
    tokenizer = service.tokenizer
    templates = chat_templates(tokenizer.settings.get("chat_template"))
    if not templates:
        what = "this model has no chat template: ask for a completion"
        raise HttpError(400, what, code="model_not_supported")
    given: Answer = {k: v for k, v in variables.items() if k not in RESERVED}
    if tools.declared and tools.shown:
        if any("tools" in t for t in templates.values()):
            given["tools"] = tools.declared
        else:
            messages = tools.told(messages)
    return tokenizer.chat(messages, **given)


RESERVED = frozenset({"self", "template", "messages", "tools", "documents", "add_generation_prompt"})
"""Variables of a template that a request does not set, and names that are none in a template."""
