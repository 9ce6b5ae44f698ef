"""An engine for Ray Serve LLM: its routers, its configuration and its autoscaling before our models.

Ray Serve LLM takes the class by name: RAYLLM_VLLM_ENGINE_CLS=monograph.inference.server.ray_llm.MonographEngine. Its
protocol models are those of vLLM or SGLang, so it cannot be imported unless one of the two is installed; where neither
is, `ray_serve` serves the same API by plain Ray Serve.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from ray.llm._internal.serve.core.engine.protocol import LLMEngine

from ...ir.errors import MonographError
from .answers import DONE, Answer, event
from .app import Going, create_app
from .chat import chat
from .completions import complete
from .embeddings import embeddings
from .errors import HttpError, http_error
from .run import service_of
from .schemas import Body, Chat, Completion, Embedding
from .service import Service, told

Found = AsyncGenerator[Any, None]
Submit = Callable[[Service, Any, AsyncExitStack], Awaitable[Going]]
OURS = ("threads", "rows", "queue", "chunk", "prefix_bytes")
"""Keys of `engine_kwargs` that are ours; others are refused by name."""


# The base declares its generators without a `yield`, which makes them coroutines to a checker.
class MonographEngine(LLMEngine):
    """A built folder as an engine. The folder is `model_source` of the configuration; the name, its `model_id`."""

    def __init__(self, llm_config: Any) -> None:
        given = dict(llm_config.engine_kwargs)
        unknown = [k for k in given if k not in OURS]
        if unknown:
            raise MonographError(f"engine_kwargs has {', '.join(unknown)}", hint=f"known: {', '.join(OURS)}")
        source = llm_config.model_loading_config.model_source
        if not isinstance(source, str):
            raise MonographError(f"model_source is {source!r}, expected the path of a built folder")
        self.service = service_of(source, name=llm_config.model_id, **given)

    async def start(self) -> None:
        """Open the model, beside the loop."""
        await asyncio.get_running_loop().run_in_executor(None, self.service.load)

    def routing_stats(self) -> dict[str, Any]:
        """What a router may weigh replicas by."""
        now = self.service.gauges()
        return {"running": now.running, "waiting": now.queued, "cache_used": now.cache_used}

    async def resolve_lora(self, lora_model: Any) -> None:
        """Raises MonographError: adapters are part of a build, and chosen as models."""
        raise MonographError("adapters are not loaded while a model is served: build them into the folder")

    async def reset_prefix_cache(self) -> None:
        """Raises MonographError: what is kept of prompts is right as long as the model is the same."""
        raise MonographError("the prefix cache is not reset while a model is served")

    async def chat(self, request: Any, raw_request_info: Any = None) -> Found:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Chunks of a stream as events, or one response."""
        async for x in self._generate(Chat, chat, request, "ChatCompletionResponse"):
            yield x

    async def completions(self, request: Any, raw_request_info: Any = None) -> Found:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Chunks of a stream as events, or one response."""
        async for x in self._generate(Completion, complete, request, "CompletionResponse"):
            yield x

    async def embeddings(self, request: Any, raw_request_info: Any = None) -> Found:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One response."""
        try:
            answer = await embeddings(self.service, _read(Embedding, request))
        except Exception as e:  # the protocol wants every error as an object
            yield refused(e)
        else:
            yield protocol("EmbeddingResponse").model_validate(answer)

    async def transcriptions(self, request: Any, raw_request_info: Any = None) -> Found:  # pyright: ignore[reportIncompatibleMethodOverride]
        """An error: speech is not served this way."""
        yield refused(HttpError(404, "this engine does not transcribe", code="model_not_supported"))

    async def check_health(self) -> None:
        """Raises MonographError where the model is not served any more."""
        if self.service.state in ("failed", "closed"):
            raise MonographError(f"the server is {self.service.state}")

    async def build_asgi_app(self) -> Any:
        """Our own application, for direct streaming."""
        return create_app(self.service)

    async def shutdown(self) -> None:
        """Let go of the model."""
        self.service.close()

    async def _generate(self, body: type[Body], submit: Submit, request: Any, response: str) -> Found:
        begun = False
        try:
            async with AsyncExitStack() as stack:
                given: Any = _read(body, request)
                going = await submit(self.service, given, stack)
                if not given.stream:
                    yield protocol(response).model_validate(await going.whole())
                    return
                async for chunk in going.chunks():
                    begun = True
                    yield event(chunk)
                yield DONE
        except Exception as e:  # the protocol wants every error as an object, or as an event of a stream
            yield event(http_error(told(e)).content()) if begun else refused(e)


def _read(body: type[Body], request: Any) -> Any:
    """One of our bodies from what a client set in one of Ray's."""
    request.__dict__.pop("request_id", None)
    return body.read(request.model_dump_json(exclude_unset=True, exclude_none=True, exclude={"request_id"}).encode())


def protocol(name: str) -> Any:
    """A protocol model of Ray Serve LLM."""
    from ray.llm._internal.serve.core.configs import openai_api_models

    return getattr(openai_api_models, name)


def refused(error: Exception) -> Any:
    """An error as Ray Serve LLM passes it on."""
    found = http_error(told(error))
    content: Answer = found.content()["error"]
    return protocol("ErrorResponse")(error=protocol("ErrorInfo")(**{**content, "code": found.status}))
