"""HTTP connections of uvicorn, held to times: what it leaves open, a slow client could hold for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from .errors import HttpError
from .limits import Limits


class Connection(H11Protocol):
    """One connection. A client must send a request's head in time, and read what it is sent.

    Subclass it with `limits` by `limited`. (uvicorn 0.30 to 0.54 times only the pause between two requests.)
    """

    limits = Limits()

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._head: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(HttpError(503, "too many connections are open", headers={"Retry-After": "1"}))
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._read()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if (cycle := self._cycle()) is not None and not cycle.response_complete:
            self._stop()
        elif not self.transport.is_closing():
            self._await_head()

    def eof_received(self) -> None:
        """Called when a client sends no more: half a request is told so, and who sent a whole one has left."""
        waiting = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if not self.transport.is_closing() and (waiting or self.conn.their_state is h11.SEND_BODY):
            self._refuse(HttpError(400, "the request was cut off before its end", code="incomplete_request"))

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._stop()

    def pause_writing(self) -> None:
        """Called when a client does not read: it has as long as for a request's body."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.limits.body_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(self.limits.body_timeout, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered as every other error, if nothing of an answer has gone out."""
        self._refuse(HttpError(400, msg, code="invalid_http"))

    def _cycle(self) -> RequestResponseCycle | None:
        """The request that is answered, or was last; None before the first one, whatever its type says."""
        return self.cycle

    def _await_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(self.limits.headers_timeout, self._late)

    def _late(self) -> None:
        self._head = None
        if not self.transport.is_closing():
            self._refuse(HttpError(408, f"the request was not there within {self.limits.headers_timeout:g} s"))

    def _stop(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _refuse(self, error: HttpError) -> None:
        """Write an error and close. The bytes are our own: the parser's state may be broken."""
        body = error.body()
        said = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        phrase = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}[error.status]
        lines = [f"HTTP/1.1 {error.status} {phrase}", *(f"{k}: {v}" for k, v in {**said, **error.headers}.items())]
        cycle = self._cycle()
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.transport.close()
        # What its client does not read would keep it open.
        self.loop.call_later(self.limits.body_timeout, self.transport.abort)


def limited(limits: Limits) -> type[Connection]:
    """Connections with these limits, as a class: what uvicorn takes."""
    return type("LimitedConnection", (Connection,), {"limits": limits})
