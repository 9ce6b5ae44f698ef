"""Chat templates: Jinja in a sandbox, with the few extensions that templates on the hub rely on."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
from jinja2.parser import Parser

from ..ir.errors import ConfigError, RuntimeInputError


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks what the model says; here it is only its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _raise(message: str) -> None:
    raise RuntimeInputError(f"the chat template refuses these messages: {message}")


def _json(x: Any, indent: int | None = None, **options: Any) -> str:
    # Jinja's own filter escapes HTML, which a model must not see.
    return json.dumps(x, ensure_ascii=False, indent=indent, **options)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    filters, names = cast("Any", environment).filters, cast("Any", environment).globals  # bare dicts to a checker
    filters["tojson"], names["raise_exception"], names["strftime_now"] = _json, _raise, _now
    return environment.from_string(template)


def render(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """The text that a chat template makes of `messages`.

    Raises ConfigError when the template is broken and RuntimeInputError when it refuses the messages.
    """
    try:
        return _compile(template).render(messages=messages, **variables)
    except jinja2.TemplateSyntaxError as e:
        raise ConfigError(f"the chat template is broken in line {e.lineno}: {e.message}") from None
    except jinja2.TemplateError as e:
        raise RuntimeInputError(f"the chat template fails on these messages: {e}") from None
