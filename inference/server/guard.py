"""What stands before every endpoint: tokens, sizes, times, and an end to work that nobody waits for."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from .errors import HttpError, http_error
from .metrics import Metrics
from .service import Service, told

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

OPEN = frozenset({"/health", "/ready", "/metrics"})
"""Paths that need no token: for probes and scrapers."""

GRACE = 5.0
"""Seconds beyond the time limit in which an endpoint may still tell its client about it."""

HEAD = 1 << 15
"""Most bytes of all headers of a request."""

GONE = 499
"""The status under which metrics count requests that their client left."""


class Tokens:
    """Bearer tokens, kept as digests and compared in constant time. Without any, everybody may ask."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.digests = [hashlib.sha256(t.encode()).digest() for t in tokens]

    def check(self, header: bytes) -> None:
        """Raise HttpError 401 unless an Authorization header has one of the tokens."""
        if not self.digests:
            return
        kind, _, given = header.partition(b" ")
        digest = hashlib.sha256(given.strip()).digest()
        # Every token is compared: how long it takes does not tell which one was close.
        fits = [hmac.compare_digest(digest, known) for known in self.digests]
        if kind.lower() != b"bearer" or not any(fits):
            what = "the token is not known" if given else "give a token: Authorization: Bearer ..."
            raise HttpError(401, what, headers={"WWW-Authenticate": "Bearer"})


class Guard:
    """An ASGI application around another one.

    hosts: names under which the server may be asked for, and of pages that may ask, for a server without tokens on a
    machine with a browser (a page from elsewhere could otherwise use it); None: any.
    """

    def __init__(
        self, app: App, service: Service, metrics: Metrics, tokens: Tokens, hosts: frozenset[str] | None = None
    ) -> None:
        self.app, self.service, self.metrics, self.tokens, self.hosts = app, service, metrics, tokens, hosts
        self.limits = service.limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, answer = time.monotonic(), _Answer(send)
        self.service.active += 1
        try:
            await self._guarded(scope, receive, answer)
        except Exception as e:  # what nobody foresaw is an answer too: the connection serves the next request
            await answer.refuse(http_error(told(e)))
        finally:
            self.service.active -= 1
            self.metrics.answered(scope, answer.status or GONE, time.monotonic() - start)

    async def _guarded(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        if sum(len(k) + len(v) for k, v in scope["headers"]) > HEAD:
            raise HttpError(431, f"the head of the request is larger than {HEAD:,} bytes", code="head_too_large")
        headers = dict(reversed(scope["headers"]))
        if self.hosts is not None:
            _check_hosts(headers, self.hosts)
        if scope["path"] not in OPEN:
            self.tokens.check(headers.get(b"authorization", b""))
            if self.service.active > self.limits.requests:
                what = f"{self.limits.requests} requests are in work already"
                raise HttpError(429, what, headers={"Retry-After": "1"})
        most = self.limits.audio if scope["path"].startswith("/v1/audio/") else self.limits.body
        _check_length(headers, most)
        try:
            body = await asyncio.wait_for(_body(receive, most), self.limits.body_timeout)
        except TimeoutError:
            what = f"the body was not there within {self.limits.body_timeout:g} s"
            raise HttpError(408, what, headers={"Connection": "close"}) from None
        if body is not None:
            await self._run(scope, body, receive, answer)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, answer: _Answer) -> None:
        """Run the endpoint until it has answered, its client has gone or its time is over."""
        gone = asyncio.Event()
        replay = _Replay(body, gone)
        # Whoever asks for the head alone gets that of the whole: uvicorn leaves the body out.
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        work = asyncio.ensure_future(self.app(asked, replay, answer))
        watch = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({work, watch}, timeout=self.limits.timeout + GRACE, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                return
            late = not watch.done()
            gone.set()
            work.cancel()
            await asyncio.wait({work})
            if late:
                raise HttpError(504, f"there was no answer within {self.limits.timeout:g} s")
        finally:
            for task in (work, watch):
                task.cancel()


class _Answer:
    """Passes an answer on, and knows whether it has begun."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.status: int | None = None

    async def __call__(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self.send(message)

    async def refuse(self, error: HttpError) -> None:
        """Answer with an error; an answer that has begun is cut off, which its client sees."""
        if self.status is not None:
            return
        body = error.body()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
        raw = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
        await self({"type": "http.response.start", "status": error.status, "headers": raw})
        await self({"type": "http.response.body", "body": body})


class _Replay:
    """Gives the body once, and then says that the client has gone when it has."""

    def __init__(self, body: bytes, gone: asyncio.Event) -> None:
        self.body: bytes | None = body
        self.gone = gone

    async def __call__(self) -> dict[str, Any]:
        body, self.body = self.body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}


def _check_hosts(headers: dict[bytes, bytes], hosts: frozenset[str]) -> None:
    """Raise HttpError 403 for a request under another name, or from a page of another host."""
    if _host(headers.get(b"host", b"")) not in hosts:
        raise HttpError(403, "this server is asked for under another name", code="wrong_host")
    origin = headers.get(b"origin", b"")
    if origin and _host(origin.partition(b"://")[2]) not in hosts:
        raise HttpError(403, "a page of another host asks", code="wrong_origin")


def _check_length(headers: dict[bytes, bytes], most: int) -> None:
    """Raise HttpError 413 before anything of a body is read that says it is too long."""
    said = headers.get(b"content-length", b"0")
    if said.isdigit() and int(said[:20]) > most:
        raise _too_large(most)


def _too_large(most: int) -> HttpError:
    return HttpError(413, f"the body is larger than {most:,} bytes", headers={"Connection": "close"})


async def _body(receive: Receive, most: int) -> bytes | None:
    """The body of a request, None if its client left before the end. Raises HttpError 413."""
    found = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        found += message.get("body", b"")
        if len(found) > most:
            raise _too_large(most)
        if not message.get("more_body", False):
            return bytes(found)


async def _left(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _host(header: bytes) -> str:
    """The name in a Host header, without its port."""
    text = header.decode("latin-1").strip().lower()
    return text[: text.find("]") + 1] if text.startswith("[") else text.partition(":")[0]
