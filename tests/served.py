"""A tiny model behind a server, for tests."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from monograph.backends.onnxruntime import build
from monograph.data.byte_level import train_tokenizer
from monograph.frontends.dsl import load_family
from monograph.ir.weights import Weights

TEXT = "the cat sat on the mat. the dog sat on the log. where is the end of it? naïve café ☕ " * 4
TEMPLATE = (
    "{% if tools %}tools: {{ tools | tojson }}\n{% endif %}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
PROMPTS = ("the cat", "where is the end of", "a", "naïve café", "the dog sat on the log. " * 3)


def tiny_decoder(folder: Path, *, positions: int = 512, template: str | None = TEMPLATE) -> Path:
    """A llama of random weights with a byte-level tokenizer, built into `folder`."""
    tokenizer = train_tokenizer(TEXT, 300)
    if template is not None:
        tokenizer.settings["chat_template"] = template
    settings = {"vocab": tokenizer.size, "dim": 32, "ffn": 48, "layers": 2, "heads": 4, "kv_heads": 2}
    model = load_family("llama")(**settings, max_positions=positions)
    graph = model.graph()
    weights = Weights.initialize(graph, 1)
    model.weights = Weights.of({k: (8 * weights.numpy(k)).astype(np.float32) for k in graph.params})
    model.tokenizer = tokenizer
    build(model, None, folder)
    return folder


def tiny_encoder(folder: Path) -> Path:
    """A BERT of random weights, built into `folder`."""
    tokenizer = train_tokenizer(TEXT, 300)
    model = load_family("bert")(vocab=tokenizer.size, dim=32, ffn=48, layers=2, heads=4, max_positions=64)
    model.weights = Weights.initialize(model.graph(), 1)
    model.tokenizer = tokenizer
    build(model, None, folder)
    return folder


def raw(url: str, data: bytes, *, end: bool = False, timeout: float = 20.0) -> bytes:
    """What a server answers to these bytes until it closes or has sent a whole answer. end: close our side after."""
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    with socket.create_connection((parts.hostname, parts.port), timeout) as s:
        s.settimeout(timeout)
        s.sendall(data)
        if end:
            s.shutdown(socket.SHUT_WR)
        found = b""
        while not _complete(found):
            more = s.recv(65536)
            if not more:
                break
            found += more
    return found


def status(answer: bytes) -> int:
    """The status of an answer; 0 if there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else 0


def _complete(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    lengths = [int(x.split(b":")[1]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")]
    return bool(found) and bool(lengths) and len(body) >= lengths[0]


def post(path: str, body: bytes, *lines: str, length: int | None = None, kind: str = "application/json") -> bytes:
    """The bytes of a POST. length: what it says its body is long (None: what it is)."""
    said = len(body) if length is None else length
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", f"Content-Length: {said}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def as_json(**fields: Any) -> bytes:
    """A body."""
    return json.dumps(fields).encode()
