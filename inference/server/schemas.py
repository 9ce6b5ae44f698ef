"""The bodies of requests. Types are strict, and a field that is not known or not implemented is refused by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

import pydantic
from pydantic import ConfigDict, Field

from .errors import HttpError

T = TypeVar("T", bound="Body")
Number = Annotated[float, Field(allow_inf_nan=False)]
Named = dict[str, Any]


class Part(pydantic.BaseModel):
    """One object inside a body."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Body(Part):
    """A request. refused: fields with a meaning that this server does not have, and the values that ask for nothing."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {}
    model: str | None = Field(None, max_length=512)
    user: str | None = Field(None, max_length=4096)
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @classmethod
    def read(cls: type[T], body: bytes) -> T:
        """The request in these bytes. Raises HttpError 400 that names the first field at fault."""
        try:
            return cls.model_validate_json(body)
        except pydantic.ValidationError as e:
            raise _refusal(e) from None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _implemented(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            raise HttpError(400, "the body is not a JSON object", code="invalid_json")
        fields = cast("dict[str, Any]", given)
        for name, allowed in cls.refused.items():
            value = fields.get(name)
            if value is not None and not any(type(value) is type(a) and value == a for a in allowed):
                what = f"{name} is not supported by this server"
                raise HttpError(400, what, param=name, code="unsupported_parameter")
        return {k: v for k, v in fields.items() if k not in cls.refused}


_PLACE = re.compile(r"(?!str$)[a-z_][\w.\-]*|\d+", re.IGNORECASE)
"""Parts of an error's place that a client knows: not the branches of a union."""


def _refusal(error: pydantic.ValidationError) -> HttpError:
    """The first error as one sentence."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    kind, place = first["type"], ".".join(str(x) for x in first["loc"] if _PLACE.fullmatch(str(x)))[:200] or None
    if kind == "json_invalid":
        return HttpError(
            400, f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json"
        )
    if kind == "extra_forbidden":
        return HttpError(400, f"unrecognized request argument: {place}", param=place, code="unknown_parameter")
    if kind == "missing":
        return HttpError(400, f"you must give {place}", param=place, code="missing_required_parameter")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return HttpError(400, f"{place}: {first['msg']}" if place else first["msg"], param=place, code=code)


class StreamOptions(Part):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(Part):
    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    schema_: Named | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Part):
    """What the answer must be: any text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Sampled(Body):
    """What completions and chats have in common."""

    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    presence_penalty: Number | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[Number, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1 << 31)
    min_p: Number | None = Field(None, ge=0, le=1)
    repetition_penalty: Number | None = Field(None, gt=0, le=1000)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: str | list[str] | None = None
    n: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None


class Completion(Sampled):
    """POST /v1/completions."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {"suffix": ("",), "best_of": (1,)}
    prompt: Any
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=5)


class Function(Part):
    name: str = Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_\-.]+$")
    description: str | None = None
    parameters: Named | None = None
    strict: bool | None = None


class Tool(Part):
    type: Literal["function"]
    function: Function


class ToolName(Part):
    name: str = Field(max_length=64)


class NamedTool(Part):
    type: Literal["function"]
    function: ToolName


class Called(Part):
    name: str
    arguments: str


class ToolCall(Part):
    id: str | None = None
    type: Literal["function"] = "function"
    function: Called
    index: int | None = None


class Text(Part):
    """A part of a message."""

    type: str
    text: str | None = None
    refusal: str | None = None

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    @property
    def said(self) -> str | None:
        """Its text, or what the model refused with; None for what is no text."""
        return {"text": self.text, "refusal": self.refusal}.get(self.type)


class Message(Part):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Text], Field(fail_fast=True)] | None = None
    name: str | None = Field(None, max_length=64)
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = Field(None, max_length=256)
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class Chat(Sampled):
    """POST /v1/chat/completions."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "reasoning_effort": (),
        "verbosity": ("medium",),
        "web_search_options": (),
        "store": (False,),
        "service_tier": ("auto", "default"),
        "moderation": (),
    }
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Annotated[list[Tool], Field(fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: Named | None = None


class Embedding(Body):
    """POST /v1/embeddings."""

    refused: ClassVar[dict[str, tuple[Any, ...]]] = {"dimensions": ()}
    input: Any
    encoding_format: Literal["float", "base64"] | None = None


def texts_or_ids(value: Any, param: str, most: int) -> list[str | list[int]]:
    """A text, ids, or a list of either, as a list of prompts. Raises HttpError 400 for others, and for too many."""
    kind = "an empty list" if value == [] else _kind(value)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        what = f"{param} is {kind}"
        raise HttpError(400, f"{what}, expected a text, token ids, or a list of either", param=param)
    items = cast("list[Any]", value)
    if _ids(items):
        return [items]
    if len(items) > most:
        raise HttpError(400, f"{param} holds {len(items)} prompts, expected at most {most}", param=param)
    for i, item in enumerate(items):
        kind = _kind(item)
        if not isinstance(item, str) and not (isinstance(item, list) and item and _ids(cast("list[Any]", item))):
            what = f"{param}.{i} is {kind}, expected a text or a list of token ids"
            raise HttpError(400, what, param=f"{param}.{i}", code="invalid_type")
    return cast("list[str | list[int]]", items)


def _kind(value: object) -> str:
    return type(value).__name__


def _ids(items: Sequence[Any]) -> bool:
    return all(type(x) is int for x in items)
