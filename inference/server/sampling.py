"""Settings of a generation from what a request says, within the limits of the server."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ..generate import Settings
from .constraints import constraint_of
from .errors import HttpError
from .limits import Limits
from .schemas import ResponseFormat, Sampled
from .service import Service


def settings_of(service: Service, body: Sampled, prompt: list[int], new: int | None, *, param: str) -> Settings:
    """The settings of one choice. new: tokens asked for; None: as many as the limits and the context leave. param:
    the field of the prompt.

    Raises HttpError 400 for what cannot be.
    """
    limits, positions = service.limits, service.positions
    if new is not None and new > limits.tokens:
        raise HttpError(400, f"max_tokens is {new}, but this server gives at most {limits.tokens}", param="max_tokens")
    if positions is not None and len(prompt) + (new or 1) > positions:
        what = f"this model has {positions} positions, but {len(prompt)} tokens in the prompt"
        what += f" and {new} new ones were asked for" if new else " leave no room for an answer"
        raise HttpError(400, what, param=param, code="context_length_exceeded")
    if new is None:
        new = limits.tokens if positions is None else min(limits.tokens, positions - len(prompt))
    return Settings(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k if body.top_k is not None and body.top_k > 0 else None,
        top_p=body.top_p,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty or 1.0,
        seed=None if body.seed is None else body.seed % (1 << 64),
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        logit_bias=bias_of(body.logit_bias, service.vocabulary),
        max_new_tokens=new,
        stop=stops_of(body.stop, limits),
        eos=() if body.ignore_eos else service.ends,
        context=positions,
    )


def bias_of(given: dict[str, float] | None, vocabulary: int) -> dict[int, float] | None:
    """A bias by token id. Raises HttpError 400 for what is no id of the model."""
    if not given:
        return None
    for key in given:
        if not (key.isascii() and key.isdigit() and len(key) < 12 and int(key) < vocabulary):
            what = f"logit_bias has the key {key[:40]!r}, expected a token id below {vocabulary}"
            raise HttpError(400, what, param="logit_bias")
    return {int(key): value for key, value in given.items()}


def choices_of(settings: Settings, count: int) -> list[Settings]:
    """One for each choice of a prompt: with a seed, choice i draws with seed + i."""
    if settings.seed is None or not isinstance(settings.seed, int):
        return [settings] * count
    return [dataclasses.replace(settings, seed=settings.seed + i) for i in range(count)]


def stops_of(stop: str | list[str] | None, limits: Limits) -> tuple[str, ...]:
    """Stop strings. Raises HttpError 400 for too many, empty and too long ones."""
    found = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(found) > limits.stops:
        raise HttpError(400, f"stop holds {len(found)} texts, expected at most {limits.stops}", param="stop")
    for text in found:
        if not 1 <= len(text) <= limits.stop_length:
            what = f"a stop text has {len(text)} characters, expected 1 to {limits.stop_length}"
            raise HttpError(400, what, param="stop")
    return found


def check_choices(limits: Limits, n: int | None, prompts: int) -> int:
    """How many choices each prompt gets. Raises HttpError 400 for too many."""
    count = n or 1
    if count > limits.choices:
        raise HttpError(400, f"n is {count}, expected at most {limits.choices}", param="n")
    if count * prompts > limits.prompts:
        what = f"{prompts} prompts with {count} choices each are {count * prompts}, expected at most {limits.prompts}"
        raise HttpError(400, what, param="n")
    return count


def check_stream(body: Sampled) -> None:
    """Raise HttpError 400 for options of a stream without one."""
    if body.stream_options is not None and not body.stream:
        raise HttpError(400, "stream_options needs stream: true", param="stream_options")


async def format_constraint(service: Service, form: ResponseFormat | None) -> Callable[[], Any] | None:
    """Makes constraints to a response format; None where any text is right. Raises HttpError 400."""
    if form is None or form.type == "text":
        return None
    schema: dict[str, Any] = {"type": "object"}
    if form.type == "json_schema":
        if form.json_schema is None or form.json_schema.schema_ is None:
            what = "response_format of type json_schema needs json_schema with a schema"
            raise HttpError(400, what, param="response_format.json_schema", code="missing_required_parameter")
        schema = form.json_schema.schema_
    return await constraint_of(service, schema, "response_format")
