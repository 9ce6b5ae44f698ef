"""The HTTP application: endpoints in the shape of OpenAI's API, probes and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from ...ir.errors import MonographError
from .answers import DONE, Answer, event
from .chat import Chatting, chat
from .completions import Completing, complete
from .embeddings import embeddings
from .errors import HttpError, http_error
from .guard import Guard, Tokens
from .metrics import Metrics
from .schemas import Body, Chat, Completion, Embedding
from .service import Service, told
from .transcriptions import transcribed

Going = Completing | Chatting


def create_app(service: Service, tokens: Sequence[str] = (), hosts: frozenset[str] | None = None) -> FastAPI:
    """The application over one service, which it loads when it starts and closes when it ends.

    tokens: bearer tokens, one of which each request to the API needs; none: everybody may ask. hosts: see `Guard`.
    """
    metrics = Metrics(service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        loading = asyncio.create_task(_load(service))
        yield
        loading.cancel()
        service.close()

    app = FastAPI(title=f"Monograph: {service.name}", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, service=service, metrics=metrics, tokens=Tokens(tokens), hosts=hosts)
    app.state.service, app.state.metrics = service, metrics
    _answer_errors(app)
    _add_probes(app, service, metrics)
    _add_api(app, service, metrics)
    return app


async def _load(service: Service) -> None:
    if service.state != "loading":
        return
    with suppress(MonographError):  # `failure` keeps it, and whoever runs the application ends it
        await asyncio.get_running_loop().run_in_executor(None, service.load)


def _answer_errors(app: FastAPI) -> None:
    """Every error has OpenAI's shape."""

    async def refuse(request: Request, error: Exception) -> Response:
        found = told(error)
        assert isinstance(found, HttpError)
        return JSONResponse(found.content(), found.status, headers=found.headers)

    async def route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = {404: f"there is no {request.url.path[:200]}", 405: f"{request.method} is not what this path takes"}
        found = HttpError(error.status_code, what.get(error.status_code, str(error.detail)), headers=error.headers)
        return JSONResponse(found.content(), found.status, headers=found.headers)

    app.add_exception_handler(MonographError, refuse)
    app.add_exception_handler(HTTPException, route)
    app.add_exception_handler(Exception, refuse)


def _add_probes(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.get("/health")
    async def health() -> Answer:  # pyright: ignore[reportUnusedFunction] - the router has it
        if service.state == "failed":
            raise HttpError(503, "the model cannot be served; the log says why")
        return {"status": service.state}

    @app.get("/ready")
    async def ready() -> Answer:  # pyright: ignore[reportUnusedFunction]
        service.check()
        return {"status": service.state}

    @app.post("/drain")
    async def drain() -> Answer:  # pyright: ignore[reportUnusedFunction]
        service.drain()
        return {"status": service.state, "requests": service.active - 1}

    @app.get("/metrics")
    async def show() -> Response:  # pyright: ignore[reportUnusedFunction]
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_api(app: FastAPI, service: Service, metrics: Metrics) -> None:
    def takes(body: type[Body]) -> dict[str, Any]:
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        schema.pop("$defs", None)
        return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}

    @app.get("/v1/models")
    async def models() -> Answer:  # pyright: ignore[reportUnusedFunction]
        return {"object": "list", "data": [_card(service, name) for name in (service.name, *service.adapters)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Answer:  # pyright: ignore[reportUnusedFunction]
        service.model(name)
        return _card(service, name)

    @app.post("/v1/completions", openapi_extra=takes(Completion))
    async def completions(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = Completion.read(await read(request))
        return await respond(metrics, bool(body.stream), lambda stack: complete(service, body, stack))

    @app.post("/v1/chat/completions", openapi_extra=takes(Chat))
    async def chats(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        body = Chat.read(await read(request))
        return await respond(metrics, bool(body.stream), lambda stack: chat(service, body, stack))

    @app.post("/v1/embeddings", openapi_extra=takes(Embedding))
    async def vectors(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return JSONResponse(await embeddings(service, Embedding.read(await read(request))))

    for path, translate in (("transcriptions", False), ("translations", True)):
        _add_speech(app, service, f"/v1/audio/{path}", translate)


def _add_speech(app: FastAPI, service: Service, path: str, translate: bool) -> None:
    @app.post(path)
    async def speech(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        kind = request.headers.get("content-type", "")
        found = await transcribed(service, kind, await request.body(), translate=translate)
        return PlainTextResponse(found) if isinstance(found, str) else JSONResponse(found)


def _card(service: Service, name: str) -> Answer:
    card = {"id": name, "object": "model", "created": service.created, "owned_by": "monograph"}
    if service.ready and service.positions:
        card["max_model_len"] = service.positions
    return card | ({"parent": service.name} if name != service.name else {})


async def read(request: Request) -> bytes:
    """The body, if it says that it is JSON: what a page from elsewhere may send without asking is not."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        what = f"the content type is {kind[:80]!r}, expected application/json"
        raise HttpError(415, what)
    if (coding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        raise HttpError(415, f"the content encoding is {coding[:80]!r}, expected none")
    return await request.body()


async def respond(metrics: Metrics, streamed: bool, submit: Callable[[AsyncExitStack], Awaitable[Going]]) -> Response:
    """The answer of one request, whole or as a stream."""
    async with AsyncExitStack() as stack:
        going = await submit(stack)
        if streamed:
            return Events(going, stack.pop_all(), metrics)
        answer = await going.whole()
    metrics.generated(going.requests)
    return JSONResponse(answer)


class Events(Response):
    """A stream of server-sent events. However it ends, what runs for it ends too."""

    media_type = "text/event-stream"

    def __init__(self, going: Going, stack: AsyncExitStack, metrics: Metrics) -> None:
        self.going, self.stack, self.metrics = going, stack, metrics
        self.status_code, self.background = 200, None
        # A proxy passes each event on when it comes.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.stack:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self._events()) as events:
                async for text in events:
                    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            self.metrics.generated(self.going.requests)
            await send({"type": "http.response.body", "body": b""})

    async def _events(self) -> AsyncGenerator[str]:
        """An error after the first event is an event itself: the status has gone out already."""
        try:
            async with aclosing(self.going.chunks()) as chunks:
                async for chunk in chunks:
                    yield event(chunk)
            yield DONE
        except Exception as e:  # the client is told in the same shape, whatever it was
            yield event(http_error(told(e)).content())
