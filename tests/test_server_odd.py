"""Odd but right requests, and what goes wrong inside: answers in OpenAI's shape, and a server that goes on."""

from __future__ import annotations

import enum
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pydantic
import pytest
from monograph.backends.onnxruntime import Session
from monograph.backends.onnxruntime.prefix import Prefixes
from monograph.data.byte_level import decode_bytes
from monograph.frontends.audio import read_wav
from monograph.inference.engine import Engine
from monograph.inference.generate import Settings
from monograph.inference.server import app
from monograph.inference.server.references import rebased, references
from monograph.inference.server.run import Serving
from monograph.ir.errors import RuntimeInputError
from openai import OpenAI
from served import as_json, post, raw, status, tiny_decoder
from test_server import until
from test_server_speech import noise, wav

pytestmark = pytest.mark.slow
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO: list[Any] = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_decoder(tmp_path_factory.mktemp("odd") / "tiny", positions=2048)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Serving]:
    with Serving(folder, threads=1, rows=4) as running:
        yield running


@pytest.fixture
def client(server: Serving) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


# -- numbers at the ends of their ranges -------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["temperature", "repetition_penalty", "min_p", "top_p"])
@pytest.mark.parametrize("value", [5e-324, 1e-320, 1e-45, 1e-39, 1e-30, 1e-7])
def test_tiny_numbers_give_tokens(client: OpenAI, field: str, value: float) -> None:
    more = {field: value} | ({"temperature": 1.0} if field != "temperature" else {})
    found = client.completions.create(model="tiny", prompt="the cat", max_tokens=4, seed=1, extra_body=more)
    assert found.usage is not None and found.usage.completion_tokens >= 1
    if field == "temperature":
        greedy = client.completions.create(model="tiny", prompt="the cat", max_tokens=4, temperature=0)
        assert found.choices[0].text == greedy.choices[0].text


# -- schemas whose parts refer to each other ---------------------------------------------------------------------------


class Color(enum.Enum):
    red = "red"
    blue = "blue"


class Leaf(pydantic.BaseModel):
    color: Color


class Paint(pydantic.BaseModel):
    """Paint something."""

    leaf: Leaf
    again: Leaf | None


class Wait(pydantic.BaseModel):
    """Wait."""

    leaf: Leaf


@pytest.mark.parametrize("functions", [[Paint], [Wait, Paint]], ids=["one", "several"])
@pytest.mark.parametrize("seed", range(3))
def test_tools_with_definitions_are_called(client: OpenAI, functions: list[Any], seed: int) -> None:
    tools = [openai.pydantic_function_tool(f) for f in functions]
    found = client.chat.completions.parse(
        model="tiny", messages=HELLO, tools=tools, tool_choice="required", max_tokens=700, seed=seed, temperature=1
    )
    calls = found.choices[0].message.tool_calls
    assert calls and isinstance(calls[0].function.parsed_arguments, tuple(functions))


def test_a_property_called_ref_is_none(client: OpenAI) -> None:
    schema = {
        "type": "object", "properties": {"$ref": {"const": "http://a"}}, "required": ["$ref"],
        "additionalProperties": False,
    }  # fmt: skip
    asked: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    found = client.chat.completions.create(model="tiny", messages=HELLO, response_format=asked, max_tokens=200)
    assert pydantic.TypeAdapter(dict[str, str]).validate_json(found.choices[0].message.content or "") == {
        "$ref": "http://a"
    }


def test_references_are_those_of_schemas() -> None:
    schema: dict[str, Any] = {
        "$ref": "#", "properties": {"$ref": {"$ref": "#/a"}, "const": {"items": [{"$ref": "#b"}]}},
        "const": {"$ref": "http://x"}, "anyOf": [{"$ref": "http://y"}, {"$id": "z", "$ref": "#/c"}],
    }  # fmt: skip
    assert sorted(references(schema)) == ["#", "#/a", "#/c", "#b", "http://y"]
    assert sorted(references(rebased(schema, "/p/q"))) == ["#/c", "#/p/q", "#/p/q/a", "#b", "http://y"]
    assert rebased(schema, "/p")["const"] == schema["const"]
    assert rebased(schema, "") == schema


# -- odd requests that are right --------------------------------------------------------------------------------


def test_no_tokens_are_asked_for(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": ["the cat", [5, 6, 7]], "echo": True, "logprobs": 1}
    none = client.completions.create(**asked, max_tokens=0, n=2)
    some = client.completions.create(**asked, max_tokens=3, temperature=0)
    assert none.usage is not None and none.usage.completion_tokens == 0
    for i, choice in enumerate(none.choices):
        known = some.choices[i // 2]
        assert choice.finish_reason == "length" and choice.logprobs and known.logprobs
        assert known.text.startswith(choice.text)
        count = len(choice.logprobs.tokens or [])
        assert choice.logprobs.tokens == (known.logprobs.tokens or [])[:count]
        assert choice.logprobs.token_logprobs == (known.logprobs.token_logprobs or [])[:count]
    streamed = "".join(c.choices[0].text for c in client.completions.create(
        model="tiny", prompt="the cat", max_tokens=0, echo=True, stream=True
    ))  # fmt: skip
    assert streamed == "the cat"


@pytest.mark.parametrize("length", [2040, 2047])
def test_without_a_number_no_more_is_asked_for_than_there_is_room_for(client: OpenAI, length: int) -> None:
    found = client.completions.create(model="tiny", prompt=[5] * length, extra_body={"ignore_eos": True})
    assert found.usage is not None and found.usage.total_tokens == 2048


@pytest.mark.parametrize(
    "earlier",
    [{"content": None, "refusal": "no"}, {"content": [{"type": "refusal", "refusal": "no"}]}, {"content": "no"}],
    ids=["field", "part", "text"],
)
def test_earlier_refusals_are_what_the_model_said(client: OpenAI, earlier: dict[str, Any]) -> None:
    messages: list[Any] = [*HELLO, {"role": "assistant", **earlier}, *HELLO]
    plain: list[Any] = [*HELLO, {"role": "assistant", "content": "no"}, *HELLO]
    more = {"return_token_ids": True}
    found, known = (
        client.chat.completions.create(model="tiny", messages=m, max_tokens=2, extra_body=more)
        for m in (messages, plain)
    )
    assert found.prompt_token_ids == known.prompt_token_ids  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["self", "template", "messages", "tools", "documents", "add_generation_prompt", "x"])
@pytest.mark.parametrize("value", [None, 5, [], "a"], ids=str)
def test_variables_of_a_template_are_no_arguments(server: Serving, name: str, value: Any) -> None:
    asked = {"model": "tiny", "messages": HELLO, "max_tokens": 2, "chat_template_kwargs": {name: value}}
    assert httpx.post(f"{server.url}{CHAT}", json=asked).status_code == 200


# -- connections --------------------------------------------------------------------------------

HALVES = {
    "of a head": post(TEXT, b"{}")[:40],
    "of a body": post(TEXT, as_json(model="tiny", prompt="the cat"))[:-4],
    "of a chunk": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n10\r\n{",
}


@pytest.mark.parametrize("kind", HALVES)
def test_half_a_request_is_told(server: Serving, kind: str) -> None:
    assert status(raw(server.url, HALVES[kind], end=True)) == 400
    until(lambda: server.service.active == 0)


def test_the_head_alone_and_encoded_bodies(server: Serving) -> None:
    for path in ("/health", "/ready", "/metrics", "/v1/models"):
        answer = httpx.head(f"{server.url}{path}")
        assert (answer.status_code, answer.content) == (200, b""), path
    assert httpx.head(f"{server.url}{TEXT}").status_code == 405
    kind = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert httpx.post(f"{server.url}{TEXT}", content=b"\x1f\x8b", headers=kind).status_code == 415


@pytest.mark.parametrize("error", [TypeError, KeyError, AssertionError, RecursionError, OSError])
def test_an_unforeseen_error_is_500_and_the_connection_goes_on(
    server: Serving, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    async def broken(*given: Any) -> None:
        raise error("of the inside")

    with httpx.Client() as client:
        asked = {"model": "tiny", "prompt": "the cat", "max_tokens": 2}
        with monkeypatch.context() as patch:
            patch.setattr(app, "complete", broken)
            for _ in range(2):
                answer = client.post(f"{server.url}{TEXT}", json=asked)
                assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
                assert "inside" not in answer.text
        assert client.post(f"{server.url}{TEXT}", json=asked).status_code == 200
    counts = httpx.get(f"{server.url}/metrics").text
    assert 'monograph_http_requests_total{path="/v1/completions",status="500"}' in counts


# -- what fails inside --------------------------------------------------------------------------------


def test_a_session_that_is_lost_makes_the_server_failed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*given: Any, **named: Any) -> Any:
        raise RuntimeError("the device is gone")

    with Serving(folder, threads=1, rows=2) as server:
        assert httpx.get(f"{server.url}/ready").status_code == 200
        monkeypatch.setattr(Session, "reload", lost)
        rows = server.service.scheduler._batch.rows
        for name in ("read", "step", "step_greedy"):
            monkeypatch.setattr(rows, name, lost)
        asked = {"model": "tiny", "prompt": "the cat", "max_tokens": 2}
        assert httpx.post(f"{server.url}{TEXT}", json=asked).status_code in (500, 503)
        until(lambda: server.service.state == "failed")
        assert "the device is gone" in str(server.service.failure)
        until(lambda: server.server.should_exit)


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_a_prefix_that_cannot_be_kept_fails_nobody(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def full(*given: Any, **named: Any) -> Any:
        raise error("no room")

    prompts = [[5, 9] * 40, [5, 9] * 40 + [7], [5, 9] * 33]
    with Engine.open(folder, threads=1) as engine:
        wanted = [engine.generate([p], max_new_tokens=4, eos=())[0].ids for p in prompts]
        with engine.scheduler(rows=2) as running:

            def ask() -> list[list[int]]:
                return [running.submit(p, Settings(max_new_tokens=4, eos=())).result(30).ids for p in prompts]

            monkeypatch.setattr(Prefixes, "grow", full)
            assert ask() == wanted
            assert running.gauges().prefix_bytes == 0
            monkeypatch.undo()
            assert ask() == wanted and ask() == wanted
            assert running.gauges().prefix_hits >= 3
            assert running.failure is None


@pytest.mark.parametrize("more", [{"frequency_penalty": 1.5}, {"presence_penalty": 2}, {"logit_bias": {"5": 100}}])
def test_bias_and_penalties_are_those_of_the_engine(client: OpenAI, server: Serving, more: dict[str, Any]) -> None:
    given = {k: {int(i): b for i, b in v.items()} if k == "logit_bias" else v for k, v in more.items()}
    for prompt in ("the cat", "naïve café", "where is the end of"):
        wanted = server.service.engine.generate(prompt, max_new_tokens=12, eos=(), **given)
        found: Any = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=12, temperature=0, **more,
            extra_body={"return_token_ids": True, "ignore_eos": True},
        )  # fmt: skip
        assert found.choices[0].token_ids == wanted.ids
        if "logit_bias" in more:
            assert wanted.ids == [5] * 12


@pytest.mark.parametrize("bias", [{"a": 1}, {"-1": 1}, {"99999": 1}, {"5": 101}, {"5": "1"}, [5], {"²": 1}, {"": 1}])
def test_a_bias_that_cannot_be(server: Serving, bias: Any) -> None:
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 1, "logit_bias": bias}
    answer = httpx.post(f"{server.url}{TEXT}", json=asked)
    assert answer.status_code == 400 and answer.json()["error"]["param"].startswith("logit_bias")


# -- sounds ------------------------------------------------------------------------------------------------------


def test_mutated_sounds_are_read_or_refused() -> None:
    """Any bytes in the head, and any cut: samples, or an error that says what is wrong."""
    rng = np.random.default_rng(3)
    good = wav(noise(1, 300), channels=2)
    files = [good[:n] for n in range(60)]
    for _ in range(1500):
        file = bytearray(good)
        for place in rng.integers(0, 44, int(rng.integers(1, 7))):
            file[place] = int(rng.choice([0, 255, int(rng.integers(256))]))
        files.append(bytes(file))
    read = 0
    for file in files:
        try:
            samples, _ = read_wav(io.BytesIO(file))
        except RuntimeInputError as e:
            assert len(e.what) > 20
        else:
            read += 1
            assert samples.ndim == 1 and np.isfinite(samples).all()
    assert 50 < read < len(files)


# -- bytes of tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("bias", [{}, {"226": 30.0, "133": 30.0, "200": 30.0}], ids=["plain", "single bytes"])
def test_bytes_of_tokens_join_to_the_text(
    client: OpenAI, server: Serving, bias: dict[str, float], stream: bool
) -> None:
    """Also where a character is several tokens: what no token decodes to by itself is there as bytes."""
    asked: dict[str, Any] = {
        "model": "tiny", "messages": HELLO, "max_tokens": 60, "seed": 4, "logprobs": True, "top_logprobs": 3,
        "logit_bias": bias, "extra_body": {"ignore_eos": True, "return_token_ids": True},
    }  # fmt: skip
    if stream:
        choices = [x for c in client.chat.completions.create(**asked, stream=True) for x in c.choices]
        told = [t for x in choices if x.logprobs and x.logprobs.content for t in x.logprobs.content]
        ids = [i for x in choices for i in getattr(x, "token_ids", None) or ()]
    else:
        choice = client.chat.completions.create(**asked).choices[0]
        told, ids = (choice.logprobs.content if choice.logprobs else None) or [], choice.token_ids  # type: ignore[attr-defined]
    tokenizer = server.service.tokenizer
    assert b"".join(bytes(t.bytes or ()) for t in told) == decode_bytes(tokenizer, ids)
    assert all(len(t.top_logprobs) == 3 and all(x.bytes is not None for x in t.top_logprobs) for t in told)
    if bias:
        assert "\ufffd" in tokenizer.decode(ids)
