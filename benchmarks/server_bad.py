"""Requests that a server refuses: malformed, oversized and cut off, each with the status it must get."""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
Kind = Callable[[random.Random, str], tuple[bytes, int]]
"""Bytes, and the status they must get; 0: the client leaves before it could get one."""


def body(path: str, content: bytes, *lines: str, kind: str = "application/json", length: int | None = None) -> bytes:
    """A POST. length: what it says (None: the truth)."""
    said = len(content) if length is None else length
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", f"Content-Length: {said}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + content


def chat(model: str, **fields: Any) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}).encode()


def fields(choices: list[dict[str, Any]], status: int = 400) -> Kind:
    return lambda r, model: (body(CHAT, chat(model, **r.choice(choices))), status)


def cut(r: random.Random, model: str) -> tuple[bytes, int]:
    whole = body(CHAT, chat(model))
    return whole[: r.randrange(1, len(whole))], 0


def broken(r: random.Random, model: str) -> tuple[bytes, int]:
    """Valid JSON that loses its end."""
    whole = chat(model)
    return body(CHAT, whole[: r.randrange(0, len(whole))]), 400


def noise(r: random.Random, model: str) -> tuple[bytes, int]:
    return r.randbytes(r.randrange(10, 200)).replace(b"\r", b"").replace(b"\n", b"") + b"\r\n\r\n", 400


def large(r: random.Random, model: str) -> tuple[bytes, int]:
    return body(CHAT, b" " * ((1 << 20) + r.randrange(1, 1000))), 413


def says_large(r: random.Random, model: str) -> tuple[bytes, int]:
    return body(CHAT, b"{", length=(1 << 20) + r.randrange(1, 1 << 40)), 413


KINDS: dict[str, Kind] = {
    "cut off": cut,
    "JSON that ends early": broken,
    "no HTTP": noise,
    "body too large": large,
    "says it is too large": says_large,
    "nested without end": lambda r, m: (body(CHAT, b"[" * r.randrange(300, 100_000)), 400),
    "half a surrogate": lambda r, m: (body(TEXT, b'{"model":"x","prompt":"\\ud8%02x"}' % r.randrange(256)), 400),
    "not UTF-8": lambda r, m: (body(TEXT, b'{"model":"x","prompt":"\xff%c"}' % r.randrange(128, 192)), 400),
    "values out of range": fields([
        {"temperature": 3}, {"temperature": "hot"}, {"top_p": 0}, {"n": 0}, {"n": 1000}, {"n": True},
        {"max_tokens": 0}, {"max_tokens": 10**9}, {"stop": ""}, {"stop": ["a"] * 100}, {"seed": 1 << 80},
        {"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 99}, {"stream": "yes"}, {"logit_bias": {"five": 1}},
        {"logit_bias": {"5": 101}}, {"logit_bias": {"-1": 1}}, {"frequency_penalty": 2.5}, {"presence_penalty": "hot"},
    ]),
    "not supported": fields([
        {"functions": [{}]}, {"modalities": ["audio"]}, {"store": True}, {"web_search_options": {}},
        {"prediction": {"type": "content"}},
    ]),
    "unknown fields": fields([
        {"temprature": 1}, {"chat_template": "{{ 7 }}"}, {"__proto__": {}}, {"file": "/etc/passwd"},
    ]),
    "wrong messages": fields([
        {"messages": []}, {"messages": "hello"}, {"messages": [{}]}, {"messages": [{"role": "god", "content": "x"}]},
        {"messages": [{"role": "user", "content": 5}]}, {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
        {"messages": [{"role": "user", "content": "x"}] * 1025},
    ]),
    "schemas that are none": fields([
        {"response_format": {"type": "xml"}}, {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strange"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "http://a/b"}}}},
        {"tools": [{"type": "function", "function": {"name": "a b"}}]}, {"tool_choice": "required"},
    ]),
    "unknown model": lambda r, m: (body(CHAT, chat(f"model-{r.random()}")), 404),
    "unknown path": lambda r, m: (body(f"/v1/{r.randrange(10**6)}", b"{}"), 404),
    "wrong method": lambda r, m: (f"GET {r.choice((CHAT, TEXT))} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), 405),
    "wrong type": lambda r, m: (body(CHAT, chat(m), kind=r.choice(("text/plain", "text/html", ""))), 415),
    "wrong host": lambda r, m: (f"GET /v1/models HTTP/1.1\r\nHost: {r.randrange(99)}.example\r\n\r\n".encode(), 403),
    "head too large": lambda r, m: (
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * r.randrange(40_000, 60_000) + b"\r\n\r\n",
        431,
    ),
    "broken chunks": lambda r, m: (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nz{r.randrange(9)}\r\n".encode(),
        400,
    ),
}  # fmt: skip


def ask(url: str, data: bytes, *, leave: bool) -> int:
    """The status of the answer to these bytes; 0 if there is none. leave: close our side after them."""
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    with socket.create_connection((parts.hostname, parts.port), 20) as s:
        s.settimeout(20)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
            s.sendall(data)
        if leave:
            return 0
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while b"\r\n" not in found and (more := s.recv(65536)):
                found += more
    return int(found.split(b" ", 2)[1]) if found.startswith(b"HTTP/") else 0
