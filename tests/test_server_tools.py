"""Tools and response formats: required calls and JSON hold by constraint; free ones are found in what a model says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from jsonschema import validate
from monograph.inference.server.run import Serving
from monograph.inference.server.tools import Calling, parse
from openai import OpenAI
from served import tiny_decoder

pytestmark = pytest.mark.slow
HELLO: Any = [{"role": "user", "content": "the cat"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "additionalProperties": False}},
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "object": WEATHER["function"]["parameters"],
    "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    "enum": {"enum": ["the cat", "the dog"]},
    "nested": {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/b"}},
        "required": ["a"],
        "additionalProperties": False,
        "$defs": {
            "b": {
                "type": "object",
                "properties": {"c": {"type": "null"}},
                "required": ["c"],
                "additionalProperties": False,
            }
        },
    },
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    with Serving(tiny_decoder(tmp_path_factory.mktemp("tools") / "tiny", positions=2048), threads=1) as server:
        yield OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_json_of_a_schema(client: OpenAI, name: str, seed: int) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": name, "schema": SCHEMAS[name], "strict": True}}
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, response_format=form, temperature=1.5, seed=seed, max_tokens=300
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "stop"
    validate(json.loads(choice.message.content or ""), SCHEMAS[name])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", "weather", "clock"])
def test_required_calls(client: OpenAI, choice: str, stream: bool) -> None:
    chosen: Any = choice if choice == "required" else {"type": "function", "function": {"name": choice}}
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, tools=[WEATHER, CLOCK], tool_choice=chosen, temperature=1.2, seed=3,
        max_tokens=300, stream=stream,
    )  # fmt: skip
    parts = [c.choices[0] for c in answer] if stream else [answer.choices[0]]
    calls = [x for p in parts for x in ((p.delta if stream else p.message).tool_calls or ())]
    assert parts[-1].finish_reason == "tool_calls"
    assert not "".join((p.delta if stream else p.message).content or "" for p in parts)
    assert len(calls) == 1
    assert calls[0].function.name in ({"weather", "clock"} if choice == "required" else {choice})
    tool = WEATHER if calls[0].function.name == "weather" else CLOCK
    validate(json.loads(calls[0].function.arguments), tool["function"]["parameters"])
    assert calls[0].id.startswith("call_")


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "strange"}, "strange"),
        ({"$ref": "http://example.org/schema.json"}, "another document"),
        ({"type": "string", "pattern": "("}, "response_format"),
        ({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(4000)}}, "bytes"),
    ],
)
def test_schemas_that_are_none(client: OpenAI, schema: dict[str, Any], why: str) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=why):
        client.chat.completions.create(model="tiny", messages=HELLO, response_format=form, max_tokens=5)


def test_a_deep_schema_is_refused(client: OpenAI) -> None:
    schema: dict[str, Any] = {}
    for _ in range(60):
        schema = {"type": "array", "items": schema}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="deep"):
        client.chat.completions.create(model="tiny", messages=HELLO, response_format=form, max_tokens=5)


NAMES = frozenset({"weather", "clock"})
CALL = '{"name": "weather", "arguments": {"city": "Oslo"}}'
SAID: dict[str, tuple[str, str, list[str]]] = {
    "text": ("It is warm.", "It is warm.", []),
    "Hermes": (f"<tool_call>\n{CALL}\n</tool_call>", "", ["weather"]),
    "Hermes after text": (f"Let me look. <tool_call>{CALL}</tool_call>", "Let me look. ", ["weather"]),
    "Hermes, two": (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", "\n", ["weather", "weather"]),
    "Hermes without an end": (f"<tool_call>{CALL}", "", ["weather"]),
    "Llama": ('{"name": "clock", "parameters": {}}', "", ["clock"]),
    "Llama, two": ('{"name": "clock", "parameters": {}}; {"name": "clock", "parameters": {}}', "", ["clock", "clock"]),
    "Llama with its tag": ('<|python_tag|>{"name": "clock", "parameters": {}}', "", ["clock"]),
    "Mistral": (f"[TOOL_CALLS][{CALL}]", "", ["weather"]),
    "list": (f"[{CALL}, {CALL}]", "", ["weather", "weather"]),
    "unknown name": ('{"name": "bomb", "arguments": {}}', '{"name": "bomb", "arguments": {}}', []),
    "JSON that is no call": ('{"a": 1}', '{"a": 1}', []),
    "broken JSON": ('{"name": "clock", ', '{"name": "clock", ', []),
    "a tag that is none": ("a <tool_ b", "a <tool_ b", []),
    "a tag without a call": ("<tool_call>hello</tool_call>", "<tool_call>hello</tool_call>", []),
    "brackets without end": ("[" * 3000, "[" * 3000, []),
    "empty": ("", "", []),
}


@pytest.mark.parametrize("kind", SAID)
@pytest.mark.parametrize("width", [1, 3, 1000])
def test_calls_are_found_however_a_text_comes(kind: str, width: int) -> None:
    text, content, names = SAID[kind]
    calling = Calling(NAMES)
    found = "".join(calling.push(text[i : i + width]) for i in range(0, len(text), width))
    rest, calls = calling.end()
    assert (found + rest, [c.name for c in calls]) == (content, names)


def test_parse_takes_arguments_as_text_too() -> None:
    assert parse('{"name": "clock", "arguments": "{}"}', NAMES)[0].arguments == "{}"
    assert parse('{"name": "clock", "arguments": 5}', NAMES) == []
