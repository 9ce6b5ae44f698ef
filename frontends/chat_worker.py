"""Renders chat templates in a process of its own: `python chat_worker.py BYTES SECONDS`, one JSON line in, one out.

A template is code from a stranger: it may loop for ever or build a text of 10 GB. Here the operating system holds it to
`BYTES` of memory; the parent waits no longer than it likes. Imports only Jinja, so that it starts fast.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import signal
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, cast

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
from jinja2.parser import Parser

LONGEST = 16_000_000
"""Characters of a prompt that are sent back; more than any model reads."""


class Refused(Exception):
    """The template called raise_exception."""


class Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks what the model says.

    The content is put between two private characters, which `spans` takes out again.
    """

    tags = {"generation"}
    START, END = "\ue0f0\ue0f1", "\ue0f1\ue0f0"

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = list(parser.parse_statements(("name:endgeneration",), drop_needle=True))
        return [self._mark(self.START, line), *body, self._mark(self.END, line)]

    @staticmethod
    def _mark(text: str, line: int) -> jinja2.nodes.Node:
        return jinja2.nodes.Output([jinja2.nodes.TemplateData(text)]).set_lineno(line)


def spans(text: str) -> tuple[str, list[tuple[int, int]]]:
    """A rendered text without the marks of generation blocks, and (start, end) of each block in it."""
    plain, found, length = list[str](), list[tuple[int, int]](), 0
    for i, piece in enumerate(text.split(Generation.START)):
        inside, _, after = piece.partition(Generation.END) if i else ("", "", piece)
        if i:
            found.append((length, length + len(inside)))
        plain.append(inside + after)
        length += len(inside) + len(after)
    return "".join(plain), found


class _Dict:
    """`dict` as a template may use it, without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def _raise(message: str) -> None:
    raise Refused(message)


def _json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter escapes HTML, which a model must not see.
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


@lru_cache(maxsize=16)
def compiled(template: str) -> jinja2.Template:
    """The template with the filters, functions and blocks that transformers gives."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    filters, names = cast("Any", environment).filters, cast("Any", environment).globals  # bare dicts to a checker
    filters["tojson"] = _json
    names.update(raise_exception=_raise, strftime_now=_now, dict=_Dict())
    return environment.from_string(template)


def reply(request: dict[str, Any]) -> dict[str, Any]:
    """{"text", "spans"} for {"template", "variables"}, or {"error", "message"} and perhaps "line"."""
    try:
        text, found = spans(compiled(request["template"]).render(**request["variables"]))
    except Refused as e:
        return {"error": "refused", "message": str(e)}
    except jinja2.TemplateSyntaxError as e:
        return {"error": "syntax", "message": str(e.message), "line": e.lineno}
    except MemoryError:
        return {"error": "memory", "message": ""}
    except RecursionError:
        return {"error": "fails", "message": "it calls itself without end"}
    except Exception as e:  # whatever the code of a stranger raises
        return {"error": "fails", "message": f"{type(e).__name__}: {e}" if not _of_jinja(e) else str(e)}
    if len(text) > LONGEST:
        return {"error": "memory", "message": f"{len(text)} characters"}
    return {"text": text, "spans": found}


def _of_jinja(e: Exception) -> bool:
    return isinstance(e, jinja2.TemplateError)


def limit_memory(size: int) -> None:
    """Hold this process to `size` bytes of address space, where the system can."""
    if sys.platform != "win32":
        import resource

        # A lower limit that stands already is kept; some systems have none that can be set.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (size, size))


def limit_time(seconds: float) -> None:
    """The system ends this process after so many seconds, unless it is told another number (0: never) before.

    Where it has no such clock, the parent ends it.
    """
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)


def serve(lines: Iterator[str], write: Callable[[str], None], seconds: float) -> None:
    """Answer each line until there are no more."""
    for line in lines:
        limit_time(seconds)
        try:
            answer = json.dumps(reply(json.loads(line)))
        except MemoryError:
            answer = json.dumps({"error": "memory", "message": ""})
        limit_time(0)
        write(answer + "\n")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent.
    limit_memory(int(sys.argv[1]))
    out = sys.stdout

    def send(text: str) -> None:
        out.write(text)
        out.flush()

    serve(iter(sys.stdin.readline, ""), send, float(sys.argv[2]))
