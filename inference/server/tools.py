"""Tools: how they are shown to a model, held to by a constraint, and found again in what it says."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from .errors import HttpError
from .limits import Limits
from .references import rebased
from .schemas import Chat

OPEN, CLOSE = "<tool_call>", "</tool_call>"
"""Around each call in what Hermes, Qwen and SmolLM models say. Others say the bare JSON of one call or of a list."""

MARKS = ("[TOOL_CALLS]", "<|python_tag|>")
BARE = ("{", "[{", *MARKS)
"""What a text begins with that may be calls without those tags."""


@dataclass(frozen=True)
class Call:
    """A function that the model wants called. arguments: JSON text."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")

    def json(self, index: int | None = None) -> dict[str, Any]:
        """As OpenAI writes it; with its index, as it writes it in a stream."""
        at = {} if index is None else {"index": index}
        return {**at, "id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class Tools:
    """Tools of a request. shown: whether the model is told of them. schema: of the answer, if it must be a call."""

    declared: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    shown: bool = True
    schema: dict[str, Any] | None = None

    @staticmethod
    def of(body: Chat, limits: Limits) -> Tools:
        """Raises HttpError 400 for too many, and for a choice of one that there is not."""
        declared = [t.model_dump(exclude_none=True) for t in body.tools or ()]
        if len(declared) > limits.tools:
            raise HttpError(400, f"tools holds {len(declared)}, expected at most {limits.tools}", param="tools")
        choice = body.tool_choice if body.tool_choice is not None else "auto" if declared else "none"
        if not declared:
            if choice not in ("none", "auto"):
                raise HttpError(400, "tool_choice needs tools", param="tool_choice")
            return Tools()
        if choice in ("none", "auto"):
            return Tools(declared, shown=choice == "auto")
        functions = [t["function"] for t in declared]
        if not isinstance(choice, str):
            name = choice.function.name
            functions = [f for f in functions if f["name"] == name]
            if not functions:
                raise HttpError(400, f"tool_choice names {name!r}, which is not among the tools", param="tool_choice")
        if len(functions) == 1:
            return Tools(declared, schema=_shape(functions[0], ""))
        return Tools(declared, schema={"anyOf": [_shape(f, f"/anyOf/{i}") for i, f in enumerate(functions)]})

    @property
    def names(self) -> frozenset[str]:
        return frozenset(t["function"]["name"] for t in self.declared)

    def calling(self) -> Calling:
        """What finds calls in one answer."""
        return Calling(self.names if self.shown else frozenset())

    def told(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """A conversation whose system message tells of the tools, for a template that does not."""
        listed = "\n".join(json.dumps(t["function"], ensure_ascii=False) for t in self.declared)
        text = f"You may call these functions:\n{listed}\nTo call one, answer with nothing but a JSON object "
        text += '{"name": <function name>, "arguments": <object>}.'
        first = messages[0] if messages and messages[0]["role"] == "system" else None
        if first is None:
            return [{"role": "system", "content": text}, *messages]
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]


def _shape(function: dict[str, Any], place: str) -> dict[str, Any]:
    """The schema of a call of one function, which stands at `place` of the whole."""
    arguments = rebased(function.get("parameters") or {"type": "object"}, f"{place}/properties/arguments")
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


class Calling:
    """Takes calls out of a text that comes piece by piece; gives the rest as soon as it cannot be part of one."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        self.held = ""
        self.calls: list[Call] = []
        self.begun = False

    def push(self, text: str) -> str:
        """Text that is no call, given more of the answer."""
        if not self.names:
            return text
        self.held += text
        if not self.begun:
            start = self.held.lstrip()
            if any(start.startswith(b) or b.startswith(start) for b in BARE):
                return ""
            self.begun = True
        return self._tagged()

    def _tagged(self) -> str:
        """What stands before and between tagged calls; an end that may become a tag stays held."""
        given = ""
        while OPEN in self.held:
            before, _, after = self.held.partition(OPEN)
            if CLOSE not in after:
                self.held = OPEN + after
                return given + before
            inside, _, self.held = after.partition(CLOSE)
            found = parse(inside, self.names)
            given += before if found else f"{before}{OPEN}{inside}{CLOSE}"
            self.calls += found
        keep = next((n for n in range(len(OPEN) - 1, 0, -1) if self.held.endswith(OPEN[:n])), 0)
        given, self.held = given + self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return given

    def end(self) -> tuple[str, list[Call]]:
        """(text that was held and is no call, the calls), when the answer has ended."""
        rest, self.held = self.held, ""
        bare = rest.strip()
        for mark in (OPEN, *MARKS):
            bare = bare.removeprefix(mark)
        found = parse(bare, self.names) if bare else []
        self.calls += found
        return ("" if found else rest), self.calls


def parse(text: str, names: frozenset[str]) -> list[Call]:
    """The calls that a text is: JSON objects with a known name and arguments, alone, in a list or one after another.

    Empty if it is anything else.
    """
    decoder, found, at = json.JSONDecoder(), list[Any](), 0
    text = text.strip()
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        found += cast("list[Any]", value) if isinstance(value, list) else [value]
        while at < len(text) and text[at] in " \n\t;,":
            at += 1
    calls = [_call(x, names) for x in found]
    return [c for c in calls if c is not None] if all(calls) else []


def _call(value: Any, names: frozenset[str]) -> Call | None:
    if not isinstance(value, dict):
        return None
    said = cast("dict[str, Any]", value)
    arguments = said.get("arguments", said.get("parameters"))
    if said.get("name") not in names or not isinstance(arguments, (dict, str)):
        return None
    return Call(said["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))
