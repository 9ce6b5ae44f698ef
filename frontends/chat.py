"""Chat templates: rendered by a worker process that is held to limits of memory and time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ..ir.errors import ConfigError, RuntimeInputError

_WORKER = Path(__file__).with_name("chat_worker.py")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_DEEPEST = 100


class ChatRenderer:
    """Renders templates; its worker starts with the first one and ends with the renderer.

    seconds: longest time for one prompt. memory: most bytes of the worker. Safe to use from several threads; a forked
    process starts a worker of its own.
    """

    def __init__(self, seconds: float = 10.0, memory: int = 1 << 30) -> None:
        self.seconds, self.memory = seconds, memory
        self._worker: _Worker | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[float, int]:
        return self.seconds, self.memory

    def __setstate__(self, state: tuple[float, int]) -> None:
        ChatRenderer.__init__(self, *state)

    def render(
        self, template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
    ) -> tuple[str, list[tuple[int, int]]]:
        """(the text that a template makes of `messages`, (start, end) of each generation block in it).

        As transformers: entries of a message that are None are left out, and what is not plain data becomes its name.
        Raises ConfigError for a broken template, and RuntimeInputError when it refuses or cannot read the messages, or
        goes beyond a limit.
        """
        given = {**variables, "messages": plain_messages(messages)}
        try:
            request = json.dumps({"template": template, "variables": _plain(given)})
        except ValueError as e:  # an integer of more than 4300 digits
            raise RuntimeInputError(f"the messages cannot be given to a chat template: {e}") from None
        with self._lock:
            answer = self._ask(request)
        if "text" in answer:
            return answer["text"], [(a, b) for a, b in answer["spans"]]
        raise _error(answer, messages)

    def _ask(self, request: str) -> dict[str, Any]:
        if self._worker is None or not self._worker.mine:
            self._worker = _Worker(self.memory, self.seconds)
        worker, self._worker = self._worker, None
        try:
            answer = worker.ask(request, self.seconds)
        except BaseException:
            worker.stop()  # Its answer is still to come, and would be taken for the next one's.
            raise
        if answer.get("error") in ("time", "memory"):
            worker.stop()
        else:
            self._worker = worker
        return answer


class _Worker:
    """One process with chat_worker.py. It ends when its input does, so it never outlives this one."""

    def __init__(self, memory: int, seconds: float) -> None:
        self.owner = os.getpid()
        if not sys.executable:
            raise ConfigError("chat templates are rendered by a Python process, and sys.executable names none")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), str(memory), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="ascii",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        self.stop = weakref.finalize(self, _stop, self.process, self.owner)

    @property
    def mine(self) -> bool:
        """Whether this process started it, and it runs."""
        return self.owner == os.getpid() and self.process.poll() is None

    def ask(self, request: str, seconds: float) -> dict[str, Any]:
        """The answer of the worker, or {"error": "time"} or {"error": "memory"} if there is none."""
        assert self.process.stdin is not None and self.process.stdout is not None
        start = time.monotonic()
        # Where the system has no clock for the worker, a timer ends it.
        late = threading.Timer(seconds, self.process.kill) if os.name == "nt" else None
        if late is not None:
            late.start()
        try:
            self.process.stdin.write(request + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if late is not None:
            late.cancel()
        if line.endswith("\n"):
            return cast("dict[str, Any]", json.loads(line))
        if time.monotonic() - start >= seconds:
            return {"error": "time", "message": f"{seconds:g} seconds"}
        return {"error": "memory", "message": ""}


def _stop(process: subprocess.Popen[str], owner: int) -> None:
    if owner == os.getpid():
        process.kill()
        process.communicate()


def _error(answer: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> ConfigError | RuntimeInputError:
    kind, message = answer["error"], answer["message"]
    if kind == "syntax":
        return ConfigError(f"the chat template is broken in line {answer['line']}: {message}")
    if kind == "refused":
        return RuntimeInputError(f"the chat template refuses these messages: {message}")
    if kind == "time":
        return RuntimeInputError(f"the chat template has not ended after {message}")
    if kind == "memory":
        return RuntimeInputError(f"the chat template needs too much memory{f': {message}' if message else ''}")
    return RuntimeInputError(f"the chat template fails on these messages: {message}", hint=_strange(messages))


def _strange(messages: Sequence[Mapping[str, Any]]) -> str:
    """Which message is not like the ones that every template reads."""
    for i, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, str):
            kind = "no content" if content is None else f"content that is a {type(content).__name__}, not a text"
            return f"message {i} ({message.get('role')}) has {kind}"
    return ""


def chat_templates(said: Any, place: str = "") -> dict[str, str]:
    """Templates by name, from one text, a list of {"name", "template"} or an object. Raises ConfigError for others."""
    if said is None:
        return {}
    if isinstance(said, str):
        return {"default": said}
    named: Any = said
    if isinstance(said, list):
        listed = [cast("dict[str, Any]", t) for t in cast("list[Any]", said) if isinstance(t, dict)]
        named = {str(t.get("name")): t.get("template") for t in listed}
    if not isinstance(named, dict) or not all(isinstance(x, str) for x in cast("dict[str, Any]", named).values()):
        shown = str(cast("object", said))[:60]
        what = f"chat_template is {shown}, expected a text, or a list of objects with name and template"
        raise ConfigError(what, place=place)
    return cast("dict[str, str]", named)


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages without what is None, reasoning under the name that templates read. Raises RuntimeInputError."""
    found: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - of a caller's file
            raise RuntimeInputError(f"message {i} is {message!r:.60}, expected an object with role and content")
        kept = {k: v for k, v in message.items() if v is not None}
        reasoning = next((kept[k] for k in _REASONING if k in kept), None)
        found.append(kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning})
    return found


def _plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON has it; anything else becomes the name of its type."""
    if depth > _DEEPEST:
        raise RuntimeInputError(f"the messages are nested more than {_DEEPEST} deep")
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v, depth + 1) for k, v in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, depth + 1) for v in cast("Sequence[Any]", value)]
    return f"<{type(value).__name__}>"
