"""What a server refuses: each kind of bad request gets its status in OpenAI's shape, the next good one an answer."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from monograph.inference.server.limits import Limits
from monograph.inference.server.run import Serving, serve, service_of
from monograph.ir.errors import MonographError, RuntimeInputError
from served import as_json, post, raw, status, tiny_decoder
from test_server import slow, until

pytestmark = pytest.mark.slow

LIMITS = Limits(
    body=20_000, tokens=300, headers_timeout=0.6, body_timeout=0.6, connections=40, messages=8, choices=4, prompts=6,
    stops=4, stop_length=32, tools=3, schema=2000, depth=10,
)  # fmt: skip
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "the cat"}]
VOCABULARY = 298
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_decoder(tmp_path_factory.mktemp("refusals") / "tiny", positions=128)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Serving]:
    with Serving(folder, threads=1, limits=LIMITS, rows=2, queue=4) as running:
        assert running.service.vocabulary == VOCABULARY
        yield running


@pytest.fixture(autouse=True)
def still_serving(server: Serving) -> Iterator[None]:
    """After every bad request a good one is answered, and nothing is left running."""
    yield
    answer = httpx.post(f"{server.url}{TEXT}", json={"model": "tiny", "prompt": "the cat", "max_tokens": 3})
    assert answer.status_code == 200
    until(lambda: server.service.gauges().running == 0)


def nested(depth: int, key: str = "a") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(depth):
        found = {key: found}
    return found


BODIES: dict[str, tuple[str, dict[str, Any], int, str | None]] = {
    "no model": (CHAT, {"messages": HELLO, "model": None}, 400, "model"),
    "unknown model": (CHAT, {"messages": HELLO, "model": "gpt-9"}, 404, "model"),
    "model of another type": (CHAT, {"messages": HELLO, "model": 5}, 400, "model"),
    "no messages": (CHAT, {}, 400, "messages"),
    "empty messages": (CHAT, {"messages": []}, 400, "messages"),
    "too many messages": (CHAT, {"messages": HELLO * 9}, 400, "messages"),
    "message without role": (CHAT, {"messages": [{"content": "a"}]}, 400, "messages.0.role"),
    "message of a strange role": (CHAT, {"messages": [{"role": "god", "content": "a"}]}, 400, "messages.0.role"),
    "message without content": (CHAT, {"messages": [{"role": "user"}]}, 400, "messages.0.content"),
    "message with a number": (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, "messages.0.content"),
    "message that is a text": (CHAT, {"messages": ["a"]}, 400, "messages.0"),
    "picture": (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
        400,
        "messages.0.content.0",
    ),
    "call with broken arguments": (
        CHAT,
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        400,
        "messages.0.tool_calls",
    ),
    "unknown field": (CHAT, {"messages": HELLO, "temprature": 1}, 400, "temprature"),
    "temperature too high": (CHAT, {"messages": HELLO, "temperature": 2.5}, 400, "temperature"),
    "temperature below zero": (CHAT, {"messages": HELLO, "temperature": -1}, 400, "temperature"),
    "temperature as text": (CHAT, {"messages": HELLO, "temperature": "1"}, 400, "temperature"),
    "top_p of zero": (CHAT, {"messages": HELLO, "top_p": 0}, 400, "top_p"),
    "n of zero": (CHAT, {"messages": HELLO, "n": 0}, 400, "n"),
    "n too many": (CHAT, {"messages": HELLO, "n": 5}, 400, "n"),
    "n true": (CHAT, {"messages": HELLO, "n": True}, 400, "n"),
    "max_tokens zero": (CHAT, {"messages": HELLO, "max_tokens": 0}, 400, "max_tokens"),
    "max_tokens beyond the limit": (CHAT, {"messages": HELLO, "max_tokens": 301}, 400, "max_tokens"),
    "max_tokens beyond the context": (CHAT, {"messages": HELLO, "max_tokens": 127}, 400, "messages"),
    "prompt beyond the context": (CHAT, {"messages": [{"role": "user", "content": "where " * 300}]}, 400, "messages"),
    "too many stops": (CHAT, {"messages": HELLO, "stop": ["a"] * 5}, 400, "stop"),
    "empty stop": (CHAT, {"messages": HELLO, "stop": ""}, 400, "stop"),
    "long stop": (CHAT, {"messages": HELLO, "stop": "a" * 33}, 400, "stop"),
    "stop of numbers": (CHAT, {"messages": HELLO, "stop": [5]}, 400, "stop"),
    "top_logprobs alone": (CHAT, {"messages": HELLO, "top_logprobs": 2}, 400, "top_logprobs"),
    "too many logprobs": (CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
    "logit_bias": (CHAT, {"messages": HELLO, "logit_bias": {"298": 1}}, 400, "logit_bias"),
    "frequency_penalty": (CHAT, {"messages": HELLO, "frequency_penalty": 2.5}, 400, "frequency_penalty"),
    "presence_penalty": (CHAT, {"messages": HELLO, "presence_penalty": "1"}, 400, "presence_penalty"),
    "sound": (CHAT, {"messages": HELLO, "modalities": ["text", "audio"]}, 400, "modalities"),
    "functions": (CHAT, {"messages": HELLO, "functions": [{"name": "f"}]}, 400, "functions"),
    "store": (CHAT, {"messages": HELLO, "store": True}, 400, "store"),
    "reasoning_effort": (CHAT, {"messages": HELLO, "reasoning_effort": "high"}, 400, "reasoning_effort"),
    "web search": (CHAT, {"messages": HELLO, "web_search_options": {}}, 400, "web_search_options"),
    "stream_options alone": (CHAT, {"messages": HELLO, "stream_options": {}}, 400, "stream_options"),
    "too many tools": (CHAT, {"messages": HELLO, "tools": [TOOL] * 4}, 400, "tools"),
    "tool_choice alone": (CHAT, {"messages": HELLO, "tool_choice": "required"}, 400, "tool_choice"),
    "tool_choice of no tool": (
        CHAT,
        {"messages": HELLO, "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        400,
        "tool_choice",
    ),
    "tool of a strange name": (
        CHAT,
        {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "a b"}}]},
        400,
        "tools.0.function.name",
    ),
    "response_format unknown": (
        CHAT,
        {"messages": HELLO, "response_format": {"type": "xml"}},
        400,
        "response_format.type",
    ),
    "response_format without schema": (
        CHAT,
        {"messages": HELLO, "response_format": {"type": "json_schema"}},
        400,
        "response_format.json_schema",
    ),
    "seed too large": (CHAT, {"messages": HELLO, "seed": 1 << 70}, 400, "seed"),
    "metadata of numbers": (CHAT, {"messages": HELLO, "metadata": {"a": 5}}, 400, "metadata.a"),
    "a template of its own": (CHAT, {"messages": HELLO, "chat_template": "{{ 1 }}"}, 400, "chat_template"),
    "no prompt": (TEXT, {}, 400, "prompt"),
    "empty prompt": (TEXT, {"prompt": ""}, 400, "prompt"),
    "empty list": (TEXT, {"prompt": []}, 400, "prompt"),
    "prompt as object": (TEXT, {"prompt": {"a": 1}}, 400, "prompt"),
    "ids and texts": (TEXT, {"prompt": [5, "a"]}, 400, "prompt.0"),
    "ids below zero": (TEXT, {"prompt": [-1]}, 400, "prompt"),
    "ids beyond the vocabulary": (TEXT, {"prompt": [10**12]}, 400, "prompt"),
    "the first id beyond the vocabulary": (TEXT, {"prompt": [5, VOCABULARY]}, 400, "prompt"),
    "ids that are true": (TEXT, {"prompt": [True]}, 400, "prompt.0"),
    "too many prompts": (TEXT, {"prompt": ["a"] * 7}, 400, "prompt"),
    "too many choices of prompts": (TEXT, {"prompt": ["a"] * 4, "n": 2}, 400, "n"),
    "suffix": (TEXT, {"prompt": "a", "suffix": "b"}, 400, "suffix"),
    "best_of": (TEXT, {"prompt": "a", "best_of": 3}, 400, "best_of"),
    "logprobs too many": (TEXT, {"prompt": "a", "logprobs": 6}, 400, "logprobs"),
    "logprobs as a switch": (TEXT, {"prompt": "a", "logprobs": True}, 400, "logprobs"),
    "embeddings of a decoder": ("/v1/embeddings", {"input": "a"}, 404, None),
    "no such path": ("/v1/engines", {"prompt": "a"}, 404, None),
    "a path upwards": ("/v1/../../etc/passwd", {"prompt": "a"}, 404, None),
}  # fmt: skip


@pytest.mark.parametrize("kind", BODIES)
def test_bodies(server: Serving, kind: str) -> None:
    path, fields, expected, param = BODIES[kind]
    answer = httpx.post(f"{server.url}{path}", json={"model": "tiny", **fields})
    assert answer.status_code == expected, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    assert str(server.service.engine.folder) not in answer.text


RAW: dict[str, tuple[bytes, int]] = {
    "cut off": (post(TEXT, b'{"model": "tiny", "prom'), 400),
    "empty": (post(TEXT, b""), 400),
    "a list": (post(TEXT, b"[]"), 400),
    "a number": (post(TEXT, b"5"), 400),
    "not a number": (post(TEXT, b'{"model": "tiny", "prompt": "a", "temperature": NaN}'), 400),
    "an infinity": (post(TEXT, b'{"model": "tiny", "prompt": "a", "temperature": 1e999}'), 400),
    "not UTF-8": (post(TEXT, b'{"model": "tiny", "prompt": "\xff\xfe"}'), 400),
    "half a surrogate": (post(TEXT, b'{"model": "tiny", "prompt": "\\ud800"}'), 400),
    "nested without end": (post(TEXT, b"[" * 10_000), 400),
    "objects nested without end": (post(TEXT, b'{"a":' * 4_000), 400),
    "another content type": (post(TEXT, as_json(model="tiny", prompt="a"), kind="text/plain"), 415),
    "a form": (post(TEXT, b"prompt=a", kind="application/x-www-form-urlencoded"), 415),
    "too large": (post(TEXT, b" " * 20_001), 413),
    "says too large": (post(TEXT, b"", length=10**15), 413),
    "says far too large": (post(TEXT, b"", length=10**40), 400),
    "too large in chunks": (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
        + b"1000\r\n"
        + b" " * 4096
        + b"\r\n"
        + (b"1000\r\n" + b" " * 4096 + b"\r\n") * 5,
        413,
    ),
    "broken chunks": (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        400,
    ),
    "body that does not come": (post(TEXT, b"{", length=50), 408),
    "head that does not come": (b"POST /v1/completions HTTP/1.1\r\nHost: local", 408),
    "nothing comes": (b"", 408),
    "no HTTP": (b"hello\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n", 400),
    "huge head": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431),
    "GET": (b"GET /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    "DELETE": (b"DELETE /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
    "another host": (b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
    "a page from elsewhere": (b"POST /drain HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n\r\n", 403),
    "a page of no host": (b"POST /drain HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\n\r\n", 403),
    "no host": (b"GET /v1/models HTTP/1.0\r\n\r\n", 403),
    "two lengths": (post(TEXT, b"{}", "Content-Length: 5"), 400),
}


@pytest.mark.parametrize("kind", RAW)
def test_bytes(server: Serving, kind: str) -> None:
    data, expected = RAW[kind]
    answer = raw(server.url, data)
    assert status(answer) == expected, answer[:300]
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("cut", [10, 90, 160])
def test_a_request_cut_off_leaves_nothing(server: Serving, cut: int) -> None:
    data = post(TEXT, as_json(model="tiny", prompt="the cat", max_tokens=50))
    raw(server.url, data[:cut], end=True)
    until(lambda: server.service.active == 0)


def test_a_full_queue_is_429_with_a_time_to_come_back(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, 0.01)
    asked = {"model": "tiny", "prompt": "the cat", "max_tokens": 40, "ignore_eos": True}
    with ThreadPoolExecutor(16) as pool:
        answers = [*pool.map(lambda _: httpx.post(f"{server.url}{TEXT}", json=asked, timeout=60), range(16))]
    found = sorted(a.status_code for a in answers)
    assert set(found) == {200, 429}
    refused = next(a for a in answers if a.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"


def test_a_request_that_takes_too_long_is_504(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Serving(folder, threads=1, limits=Limits(timeout=0.3)) as late:
        slow(monkeypatch, 0.05)
        asked = {"model": "tiny", "prompt": "the cat", "max_tokens": 100, "ignore_eos": True}
        answer = httpx.post(f"{late.url}{TEXT}", json=asked)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        text = httpx.post(f"{late.url}{TEXT}", json={**asked, "stream": True}).text
        assert '"code":"timeout"' in text.replace(" ", "")
        assert "[DONE]" not in text
        until(lambda: late.service.gauges().running == 0)


def test_connections_beyond_the_most_are_refused(server: Serving) -> None:
    parts = urlsplit(server.url)
    address = (parts.hostname, parts.port)
    held = [socket.create_connection(address) for _ in range(LIMITS.connections)]
    try:
        time.sleep(0.1)
        assert status(raw(server.url, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")) == 503
    finally:
        for s in held:
            s.close()
    until(lambda: len(server.server.server_state.connections) < 5)


def test_slow_heads_are_closed(server: Serving) -> None:
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port)) as s:
        s.settimeout(10)
        start = time.monotonic()
        s.sendall(b"GET /health HTTP/1.1\r\n")
        for _ in range(20):
            time.sleep(0.1)
            try:
                s.sendall(b"X: a\r\n")
            except OSError:
                break
        answer = s.recv(1000)
    assert status(answer) == 408
    assert time.monotonic() - start < 5


def test_a_reader_that_stops_reading_is_let_go(folder: Path) -> None:
    limits = Limits(body_timeout=0.5, tokens=100)
    with Serving(folder, threads=1, limits=limits) as server:
        parts = urlsplit(server.url)
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect((parts.hostname, parts.port))
            one = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
            s.settimeout(1)
            try:
                for _ in range(3000):
                    s.sendall(one)
            except OSError:
                pass
            until(lambda: not server.server.server_state.connections)
    assert server.service.active == 0


def test_a_server_for_others_needs_a_token(folder: Path) -> None:
    with pytest.raises(RuntimeInputError, match=r"0\.0\.0\.0 is reached from other machines"):
        serve(folder, host="0.0.0.0", port=0)
    with pytest.raises(RuntimeInputError, match="a token is empty"):
        serve(folder, port=0, tokens=[" "])


def test_what_cannot_be_served_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MonographError, match=r"no monograph\.json"):
        service_of(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RuntimeInputError, match="cannot listen on"):
        serve(folder, port=taken.getsockname()[1])
    (tmp_path / "monograph.json").write_text("{}")
    with pytest.raises(MonographError, match=r"monograph\.json"), Serving(tmp_path):
        pass
    with pytest.raises(RuntimeInputError, match="the limit body is 0"):
        Limits(body=0)
