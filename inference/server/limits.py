"""What one request may ask for, and what one server holds at a time."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ...ir.errors import RuntimeInputError


@dataclass(frozen=True)
class Limits:
    """Bounds of a server. Sizes are bytes, times are seconds.

    body: of a request. tokens: new tokens of a choice. timeout: of a request from its first byte to its last one.
    headers_timeout, body_timeout: until a client has sent them. idle: a connection between two requests. connections:
    open at a time. requests: in work at a time, waiting ones included. prompts, choices: of a completion, each and
    together. inputs: texts of an embedding request. messages, tools, stops: of a conversation. stop_length:
    characters of a stop string. schema: bytes of a JSON schema. depth: how deeply schemas and tools are nested.
    drain: how long a server that is told to stop waits for running requests.
    """

    body: int = 1 << 20
    tokens: int = 4096
    timeout: float = 600.0
    headers_timeout: float = 10.0
    body_timeout: float = 30.0
    idle: float = 30.0
    connections: int = 512
    requests: int = 512
    prompts: int = 64
    choices: int = 16
    inputs: int = 2048
    messages: int = 1024
    tools: int = 128
    stops: int = 16
    stop_length: int = 256
    schema: int = 1 << 16
    depth: int = 32
    audio: int = 25 << 20
    drain: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise RuntimeInputError(f"the limit {field.name} is {value!r}, expected more than 0")
