"""A server in this process: from a built folder to a clean end."""

from __future__ import annotations

import functools
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

import uvicorn

from ...backends.onnxruntime.contract import HOW
from ...ir.errors import RuntimeInputError
from ..engine import Engine
from .app import create_app
from .connections import limited
from .limits import Limits
from .service import Service

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})
"""Addresses that only this machine reaches, and the names it has there."""


class Server(uvicorn.Server):
    """uvicorn's, which drains before it ends: the first signal drains and then stops, the second one stops at once.

    ready: called once when the model is there, with the address. A model that cannot be opened ends the server.
    """

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[str], None] | None = None) -> None:
        super().__init__(config)
        self.service, self.ready = service, ready
        self.signals = 0
        self.since: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.signals += 1
        self.service.drain()
        if self.signals > 1:
            self.should_exit = self.force_exit = True

    def stop(self) -> None:
        """Drain and end, as the first signal does; from any thread."""
        self.handle_exit(0, None)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: whether to end now."""
        if self.ready is not None and self.service.ready:
            self.ready(self.url)
            self.ready = None
        if self.service.state == "failed":
            self.should_exit = True
        if self.signals and not self.should_exit:
            self._drain()
        return await super().on_tick(counter)

    def _drain(self) -> None:
        """End when nothing runs any more, or after the time for that; what still runs then fails."""
        now = time.monotonic()
        self.since = self.since or now
        if not self.service.active:
            self.should_exit = True
        elif now - self.since > self.service.limits.drain:
            self.service.close()
            self.should_exit = True


def server_of(
    service: Service,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    tokens: Sequence[str] = (),
    public: bool = False,
    ready: Callable[[str], None] | None = None,
) -> Server:
    """A server for a service, not started yet.

    public: whether it may listen beyond this machine without a token. Raises RuntimeInputError otherwise.
    """
    if host not in LOOPBACK and not tokens and not public:
        what = f"{host} is reached from other machines, and there is no token: everybody could use the model"
        raise RuntimeInputError(
            what, hint="give tokens (--token-file, --token-env), or say that it is public (--public)"
        )
    if any(not t or not t.isascii() or t.strip() != t for t in tokens):
        raise RuntimeInputError("a token is empty, or has spaces around it or letters beyond ASCII")
    hosts = LOOPBACK if not tokens and host in LOOPBACK else None
    limits = service.limits
    config = uvicorn.Config(
        create_app(service, tokens, hosts),
        host=host,
        port=port,
        http=limited(limits),
        ws="none",
        lifespan="on",
        log_level="error",  # a client cannot fill a log with what is no HTTP
        access_log=False,
        server_header=False,
        timeout_keep_alive=max(1, round(limits.idle)),
        timeout_graceful_shutdown=5,
    )
    return Server(config, service, ready)


def service_of(
    model: str | Path | Engine,
    *,
    name: str | None = None,
    threads: int | None = None,
    limits: Limits | None = None,
    **settings: Any,
) -> Service:
    """A service for a built folder, or for an engine, which is closed with it. settings: of the scheduler."""
    if isinstance(model, Engine):
        return Service(lambda: model, name or model.folder.resolve().name, limits, settings)
    folder = Path(model)
    if not (folder / "monograph.json").exists():
        what = "is not a folder that `build` wrote: there is no monograph.json"
        raise RuntimeInputError(what, place=str(folder), hint=HOW)
    opener = functools.partial(Engine.open, folder, threads=threads)
    return Service(opener, name or folder.resolve().name, limits, settings)


def serve(
    model: str | Path | Engine,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    tokens: Sequence[str] = (),
    public: bool = False,
    name: str | None = None,
    threads: int | None = None,
    limits: Limits | None = None,
    ready: Callable[[str], None] | None = None,
    **settings: Any,
) -> None:
    """Serve a built folder (or an engine) over HTTP, in the shape of OpenAI's API, until a signal ends it.

    host, port: where to listen; port 0: any free one. tokens: bearer tokens, one of which a request needs. public:
    listen beyond this machine without one. name: of the model to clients (None: that of the folder). limits: see
    `Limits`. ready: called with the address when requests are taken. settings: rows, queue, chunk and prefix_bytes of
    the scheduler. Raises MonographError if the model cannot be opened or the address is taken.
    """
    service = service_of(model, name=name, threads=threads, limits=limits, **settings)
    with _listening(host, port) as listener:
        server = server_of(service, host=host, port=port, tokens=tokens, public=public, ready=ready)
        server.run(sockets=[listener])
    if service.failure is not None:
        raise service.failure


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises RuntimeInputError."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as e:
        raise RuntimeInputError(f"cannot listen on {host}:{port}: {e.strerror or e}") from None


class Serving:
    """A server in a thread of this process, for tests and notebooks: `with Serving(folder) as s: s.url`."""

    def __init__(self, model: str | Path | Engine, *, tokens: Sequence[str] = (), **settings: Any) -> None:
        self.service = service_of(model, **settings)
        self._ready = threading.Event()
        self.server = server_of(self.service, port=0, tokens=tokens, ready=lambda _: self._ready.set())
        self._socket = _listening("127.0.0.1", 0)
        self.thread = threading.Thread(target=self._run, name="monograph-http", daemon=True)

    def _run(self) -> None:
        try:
            self.server.run(sockets=[self._socket])
        finally:
            self._ready.set()

    def __enter__(self) -> Self:
        self.thread.start()
        self._ready.wait()
        if self.service.failure is not None:
            raise self.service.failure
        return self

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return self.server.url

    def __exit__(self, *error: object) -> None:
        self.server.stop()
        self.thread.join()
        self._socket.close()
