"""What the endpoints of a server share: one model, its scheduler or its worker, and the state the server is in."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from ...frontends.tokenizer import Tokenizer
from ...ir.errors import MonographError, RuntimeInputError
from ...ir.slots import TOKENS
from ..engine import Engine
from ..errors import ClosedError, DeadlineError, GrammarError, QueueFullError
from ..generate import Settings
from ..grammar import Grammars
from ..request import Piece, Request
from ..scheduler import Gauges, Scheduler
from .errors import HttpError, http_error
from .limits import Limits
from .vectors import Vectors

State = Literal["loading", "ready", "draining", "failed", "closed"]
T = TypeVar("T")
log = logging.getLogger("monograph.server")


class Service:
    """One model that many requests use at once.

    open: gives the engine; called once, in a thread, by `start`. name: of the model to clients. settings: of the
    scheduler (rows, queue, chunk, prefix_bytes).
    """

    def __init__(
        self,
        open: Callable[[], Engine],
        name: str,
        limits: Limits | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.limits, self.settings = name, limits or Limits(), dict(settings or {})
        self.created = int(time.time())
        self._state: State = "loading"
        self.active = 0
        self._failure: MonographError | None = None
        self._open = open
        self._engine: Engine | None = None
        self._scheduler: Scheduler | None = None
        self._vectors: Vectors | None = None
        # Texts are encoded and templates rendered here, never on the loop that answers everybody.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="monograph-server")
        self._alone = ThreadPoolExecutor(1, thread_name_prefix="monograph-model")
        self._alone_waiting = 0

    # -- life ---------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Open the engine and what runs it. Raises MonographError, which `failure` keeps."""
        try:
            engine = self._open()
            contract = engine.session.contract
            if contract.kind == "decoder" and not contract.encoder:
                self._scheduler = engine.scheduler(**self.settings)
            elif contract.task == "feature-extraction":
                self._vectors = Vectors(engine, waiting=int(self.settings.get("queue", 256)))
            elif contract.task != "speech-to-text":
                what = f"{contract.family} is a {contract.task} model"
                raise RuntimeInputError(f"{what}: a server serves text generation, embeddings and transcription")
            self._engine = engine
            if self._state == "loading":
                self._state = "ready"
        except MonographError as e:
            self._state, self._failure = "failed", e
            raise

    @property
    def failure(self) -> MonographError | None:
        """Why the model is not served: it could not be opened, or its session failed and could not be opened again."""
        return self._failure or (self._scheduler.failure if self._scheduler is not None else None)

    @property
    def state(self) -> State:
        """What the server does now."""
        return "failed" if self._state != "closed" and self.failure is not None else self._state

    @property
    def ready(self) -> bool:
        """Whether new requests are taken."""
        return self.state == "ready"

    def drain(self) -> None:
        """Take no more requests; those that run go on. Doing it again changes nothing."""
        if self.state in ("loading", "ready"):
            self._state = "draining"

    async def idle(self, timeout: float) -> bool:
        """Wait until no request runs; whether that was so in time."""
        end = time.monotonic() + timeout
        while self.active and time.monotonic() < end:
            await asyncio.sleep(0.02)
        return not self.active

    def close(self) -> None:
        """End everything. Doing it again changes nothing."""
        self._state = "closed"
        if self._scheduler is not None:
            self._scheduler.close()
        if self._vectors is not None:
            self._vectors.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._alone.shutdown(wait=False, cancel_futures=True)
        if self._engine is not None:
            self._engine.close()

    def check(self) -> None:
        """Raise HttpError 503 unless new requests are taken."""
        if self.state != "ready":
            raise HttpError(503, f"the server is {self.state}", headers={"Retry-After": "5"})

    # -- the model ----------------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """Raises HttpError 503 before it is there."""
        if self._engine is None:
            raise HttpError(503, f"the server is {self.state}", headers={"Retry-After": "5"})
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises HttpError 400 for a model without one."""
        if self.engine.tokenizer is None:
            raise HttpError(400, "this model has no tokenizer: give token ids")
        return self.engine.tokenizer

    @property
    def positions(self) -> int | None:
        """Most tokens of a prompt and its answer together."""
        return self.engine.session.contract.positions or None

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return self.engine.ends

    @functools.cached_property
    def grammars(self) -> Grammars:
        """Compiled schemas over the tokens of the model."""
        return Grammars(self.tokenizer)

    def spelling(self, id: int) -> bytes | None:
        """The bytes of a token, of which a character may need several; None where its tokenizer does not tell."""
        try:
            return self.grammars.spelling(id, frozenset(self.ends))
        except GrammarError:
            return None

    @functools.cached_property
    def vocabulary(self) -> int:
        """How many tokens the model knows, as far as its folder says."""
        config = self.engine.config
        nested: dict[str, Any] = config.get("text_config") or {}
        said = [config.get("vocab_size"), nested.get("vocab_size"), self.engine.session.contract.bounds.get(TOKENS.ids)]
        return min((n for n in said if isinstance(n, int)), default=1 << 31)

    @property
    def fingerprint(self) -> str:
        """What built the model, so that a client sees when answers may have become others."""
        contract = self.engine.session.contract
        return f"monograph-{contract.family}-{contract.dtype}-ort{contract.runtime}"

    @property
    def scheduler(self) -> Scheduler:
        """Raises HttpError 404 for a model that does not generate."""
        self.check()
        if self._scheduler is None:
            raise HttpError(404, f"{self.name} does not generate text", code="model_not_supported")
        return self._scheduler

    @property
    def vectors(self) -> Vectors:
        """Raises HttpError 404 for a model that gives no embeddings."""
        self.check()
        if self._vectors is None:
            raise HttpError(404, f"{self.name} gives no embeddings", code="model_not_supported")
        return self._vectors

    def gauges(self) -> Gauges:
        """How busy the model is; zeros while it loads."""
        if self._scheduler is not None:
            return self._scheduler.gauges()
        waiting = self._vectors.waiting if self._vectors is not None else self._alone_waiting
        return Gauges(max(0, waiting - 1), min(1, waiting), 1, 0.0, 0, 0, 0, 0, 0, 0)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of adapters that a request may choose as its model."""
        return () if self._engine is None else tuple(self._engine.session.contract.adapters)

    def model(self, name: str | None) -> str | None:
        """The adapter that a model's name stands for, None for the base. Raises HttpError 400 or 404."""
        self.check()
        if name is None:
            raise HttpError(400, "you must give model", param="model", code="missing_required_parameter")
        if name == self.name:
            return None
        if name not in self.adapters:
            what = f"the model {name[:80]!r} does not exist"
            raise HttpError(404, what, param="model", code="model_not_found")
        return name

    async def thread(self, work: Callable[..., T], *args: Any, **given: Any) -> T:
        """What `work` gives, computed beside the loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: work(*args, **given))

    async def alone(self, work: Callable[..., T], *args: Any) -> T:
        """What `work` gives, one at a time: for models that serve one request after another.

        Raises HttpError 429 when too many wait.
        """
        if self._alone_waiting >= int(self.settings.get("queue", 256)):
            raise HttpError(429, f"{self._alone_waiting} requests wait already", headers={"Retry-After": "1"})
        self._alone_waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._alone, lambda: work(*args))
        finally:
            self._alone_waiting -= 1

    async def encode(self, prompt: str | list[int], param: str) -> list[int]:
        """The ids of a prompt. Raises HttpError 400 for one that is empty or has ids that there are not."""
        if isinstance(prompt, str):
            ids = await self.thread(self.tokenizer.encode, prompt)
        else:
            ids = prompt
        if not ids:
            raise HttpError(400, f"{param} has no tokens", param=param)
        strange = next((i for i in ids if not 0 <= i < self.vocabulary), None)
        if strange is not None:
            raise HttpError(400, f"{param} has the token id {strange}, which the model does not have", param=param)
        return ids

    # -- requests -----------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(
        self, prompts: Sequence[tuple[list[int], Settings]], **asked: Any
    ) -> AsyncGenerator[list[Request]]:
        """Requests for several prompts, which are cancelled when the block is left before they have ended.

        asked: further arguments of `Scheduler.submit`, with `constraints`, one for each prompt. Raises what that does.
        """
        requests: list[Request] = []
        constraints = asked.pop("constraints", None) or [None] * len(prompts)
        scheduler = self.scheduler
        try:
            for (prompt, settings), constraint in zip(prompts, constraints, strict=True):
                asked["constraint"] = constraint
                requests.append(scheduler.submit(prompt, settings, timeout=self.limits.timeout, **asked))
            yield requests
        finally:
            for request in requests:
                request.cancel()


async def pieces(requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Piece]]:
    """(index, piece) of several requests as they come. Raises the error that ended one."""
    loop, woken, left = asyncio.get_running_loop(), asyncio.Event(), list(range(len(requests)))

    def wake() -> None:
        loop.call_soon_threadsafe(woken.set)

    for request in requests:
        request.listen(wake)
    try:
        while left:
            woken.clear()
            for i in list(left):
                ended = requests[i].done
                for piece in requests[i].take():
                    yield i, piece
                if ended:
                    requests[i].result(0)
                    left.remove(i)
            if left:
                await woken.wait()
    finally:
        for request in requests:
            request.forget(wake)


def told(error: Exception) -> Exception:
    """An error of a request as a client is told it; errors that nobody raised on purpose are logged."""
    if isinstance(error, QueueFullError):
        return HttpError(429, error.what, headers={"Retry-After": "1"})
    if isinstance(error, DeadlineError):
        return HttpError(504, error.what)
    if isinstance(error, ClosedError):
        return HttpError(503, error.what, headers={"Retry-After": "5"})
    found = http_error(error)
    if found.status == 500 and not isinstance(error, HttpError):
        log.error("a request failed", exc_info=error)
    return found
