"""A stream that survives the server it comes from: asked for again elsewhere, it goes on where it broke."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...ir.errors import MonographError, RuntimeInputError
from ...ir.missing import needed

if TYPE_CHECKING:
    from openai import OpenAI


class StreamError(MonographError):
    """A stream broke as often as it may, or went on otherwise when it was asked for again."""


def stream_text(client: OpenAI, *, attempts: int = 5, wait: float = 0.25, **asked: Any) -> Iterator[str]:
    """The text of a completion (with `prompt`) or of a chat (with `messages`), piece by piece.

    A stream that breaks, or a server that is away, is asked again from the beginning, up to `attempts` times with
    `wait` seconds between, twice as many each time; what was given already is left out. So that it is the same text
    again, the request is greedy or has a seed. Raises RuntimeInputError if it has neither or asks for several choices,
    StreamError, and at once what the client raises for a request that is wrong.
    """
    with needed("stream_text"):
        import httpx
        import openai
    if asked.get("temperature") != 0 and asked.get("seed") is None:
        raise RuntimeInputError("a stream that may have to begin anew needs temperature=0 or a seed")
    if asked.get("n", 1) != 1:
        raise RuntimeInputError(f"n is {asked['n']!r}: a stream that may have to begin anew has one choice")
    given, last = "", ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(wait * 2 ** (attempt - 1))
        text = ""
        try:
            for piece, reason in _pieces(client, asked):
                text += piece
                if not text.startswith(given[: len(text)]):
                    raise StreamError("the stream went on otherwise when it was asked for again")
                if len(text) > len(given):
                    new, given = text[len(given) :], text
                    yield new
                if reason is not None:
                    return
            last = "it ended without a reason"
        except openai.APIStatusError as e:
            if e.status_code < 500 and e.status_code not in (408, 429):
                raise
            last = f"{e.status_code}: {e}"
        except (openai.APIError, httpx.HTTPError) as e:  # also an error that came as an event of the stream
            last = f"{type(e).__name__}: {e}"
    raise StreamError(f"the stream broke {attempts} times; the last time: {last}")


def _pieces(client: Any, asked: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """(text, why it ended if it did) of each chunk."""
    if "messages" in asked:
        for chunk in client.chat.completions.create(**{**asked, "stream": True}):
            for choice in chunk.choices:
                yield choice.delta.content or "", choice.finish_reason
    else:
        for chunk in client.completions.create(**{**asked, "stream": True}):
            for choice in chunk.choices:
                yield choice.text, choice.finish_reason
