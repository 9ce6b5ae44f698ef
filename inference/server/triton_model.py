"""What runs inside Triton's Python backend: requests become those of a scheduler, or one run of an encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from ...ir.errors import MonographError, RuntimeInputError
from ..engine import Engine
from ..generate import Settings
from ..request import Request
from ..scheduler import Scheduler
from .triton import BUILT

ALIASES = {"max_tokens": "max_new_tokens"}
"""Sampling parameters that clients of other backends write, by our names."""


class Model:
    """A model of a repository. pb: the module `triton_python_backend_utils`. args: what Triton gives a model."""

    def __init__(self, pb: Any, args: Any) -> None:
        self.pb = pb
        config = json.loads(args["model_config"])
        said = {k: v["string_value"] for k, v in config["parameters"].items()}
        folder = Path(args["model_repository"]) / str(args["model_version"]) / BUILT
        threads = int(said["threads"]) or None
        self.engine = Engine.open(folder, threads=threads)
        self.scheduler: Scheduler | None = None
        if self.engine.session.contract.kind == "decoder":
            self.scheduler = self.engine.scheduler(rows=int(said["rows"]))

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Answers of an encoder; None for a model that generates, whose answers go through their senders."""
        if self.scheduler is None:
            return self._embed(requests)
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._submit(request, sender, self.scheduler)
            except MonographError as e:
                self._fail(sender, e)
        return None

    def close(self) -> None:
        """Let go of the model."""
        if self.scheduler is not None:
            self.scheduler.close()
        self.engine.close()

    # -- generation -------------------------------------------------------------------------------------------------

    def _submit(self, request: Any, sender: Any, scheduler: Scheduler) -> None:
        text = self._given(request, "text_input")
        if text is None or self.engine.tokenizer is None:
            raise RuntimeInputError("text_input is missing, or the model has no tokenizer")
        stream = bool(self._given(request, "stream") or False)
        settings = settings_of(self._given(request, "sampling_parameters"), self.engine)
        running = scheduler.submit(self.engine.tokenizer.encode(str(text)), settings)
        _Sending(self.pb, running, sender, stream).begin()

    def _given(self, request: Any, name: str) -> Any:
        """The first element of an input, texts decoded; None if it was left out."""
        tensor = self.pb.get_input_tensor_by_name(request, name)
        if tensor is None:
            return None
        value = tensor.as_numpy().reshape(-1)[0]
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def _fail(self, sender: Any, error: MonographError) -> None:
        answer = self.pb.InferenceResponse(output_tensors=[], error=self.pb.TritonError(error.what))
        sender.send(answer, flags=self.pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    # -- embeddings -------------------------------------------------------------------------------------------------

    def _embed(self, requests: Sequence[Any]) -> list[Any]:
        """One run for all; where a text is wrong, one for each request, so that only its own fails."""
        texts = [self.pb.get_input_tensor_by_name(r, "text_input").as_numpy().reshape(-1).tolist() for r in requests]
        plain = [[t.decode("utf-8", "replace") for t in given] for given in texts]
        try:
            vectors = self.engine.embed([t for given in plain for t in given])
        except MonographError as e:
            if len(requests) == 1:
                return [self.pb.InferenceResponse(output_tensors=[], error=self.pb.TritonError(e.what))]
            return [answer for r in requests for answer in self._embed([r])]
        parts = np.split(np.asarray(vectors, np.float32), np.cumsum([len(given) for given in plain])[:-1])
        return [self.pb.InferenceResponse(output_tensors=[self.pb.Tensor("embedding", part)]) for part in parts]


class _Sending:
    """Sends the pieces of one request as they come, from the thread of the scheduler; without `stream`, all at once."""

    def __init__(self, pb: Any, running: Request, sender: Any, stream: bool) -> None:
        self.pb, self.running, self.sender, self.stream = pb, running, sender, stream
        self.text: list[str] = []
        self.ids: list[int] = []
        self.ended = False

    def begin(self) -> None:
        self.running.listen(self.look)

    def look(self) -> None:
        """Called when a piece has come, or the request has ended."""
        if self.ended:
            return
        if self.sender.is_cancelled():
            self.running.cancel()
        ended = self.running.done
        for piece in self.running.take():
            self.text.append(piece.text)
            self.ids += piece.ids
            if piece.reason is not None:
                self.ended = True
                self._send(piece.reason, self.pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            elif self.stream and piece.text:
                self._send("", 0)
        if ended and not self.ended:
            self.ended = True
            self._fail()

    def _send(self, reason: str, flags: int) -> None:
        outputs = [
            self.pb.Tensor("text_output", np.array(["".join(self.text).encode()], np.object_)),
            self.pb.Tensor("token_ids", np.array(self.ids, np.int64)),
            self.pb.Tensor("finish_reason", np.array([reason.encode()], np.object_)),
        ]
        self.text, self.ids = [], []
        self.sender.send(self.pb.InferenceResponse(output_tensors=outputs), flags=flags)

    def _fail(self) -> None:
        try:
            self.running.result(0)
        except MonographError as e:
            answer = self.pb.InferenceResponse(output_tensors=[], error=self.pb.TritonError(e.what))
            self.sender.send(answer, flags=self.pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def settings_of(said: Any, engine: Engine) -> Settings:
    """Settings from the JSON object that clients write, whose values may be texts. Raises RuntimeInputError."""
    try:
        given: Any = json.loads(said) if said else {}
    except (ValueError, RecursionError) as e:
        raise RuntimeInputError(f"sampling_parameters is not JSON: {e}") from None
    if not isinstance(given, dict):
        raise RuntimeInputError(f"sampling_parameters is {type(given).__name__}, expected an object")
    found: dict[str, Any] = {"context": engine.session.contract.positions or None, "eos": engine.ends}
    for name, value in cast("dict[str, Any]", given).items():
        found[ALIASES.get(name, name)] = _value(value) if name != "stop" else value
    return Settings.of(found)


def _value(value: Any) -> Any:
    """A number that is written as text, else what was given."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
