"""Text as it is generated: never half a character, never anything that a stop string may still take back."""

from __future__ import annotations

from collections.abc import Sequence

from ..frontends.tokenizer import Tokenizer
from ..ir.errors import RuntimeInputError


class StopText:
    """Lets text through up to the stop string that ends first; holds back an end that could be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        if any(s == "" for s in stops):
            raise RuntimeInputError("a stop string is empty: it would stop before the first token")
        self.stops = tuple(stops)
        self.held = ""
        self.stopped: str | None = None

    def push(self, text: str) -> str:
        """What is certain to stay, given more text. Nothing comes after a stop string; `stopped` names it."""
        if self.stopped is not None:
            return ""
        self.held += text
        found = [(self.held.find(s) + len(s), -len(s), s) for s in self.stops if s in self.held]
        if found:
            end, _, self.stopped = min(found)
            text, self.held = self.held[: end - len(self.stopped)], ""
            return text
        keep = max((_overlap(self.held, s) for s in self.stops), default=0)
        cut = len(self.held) - keep
        text, self.held = self.held[:cut], self.held[cut:]
        return text

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        text, self.held = self.held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper start of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


class RowText:
    """The text of one row, from ids that come one at a time after the ids of its prompt."""

    def __init__(self, tokenizer: Tokenizer | None, stops: Sequence[str], before: Sequence[int] = ()) -> None:
        self.stream = tokenizer.stream(before) if tokenizer is not None else None
        self.stop = StopText(stops)
        self.pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def stopped(self) -> bool:
        return self.stop.stopped is not None

    def push(self, id: int) -> str:
        """Text that is certain now and was not before."""
        return self._give(self.stop.push(self.stream.push(id))) if self.stream is not None else ""

    def end(self) -> str:
        """The rest, when the row ended for another reason than a stop string."""
        if self.stream is None:
            return ""
        # An incomplete character shows up now, and may complete a stop string no less than any other text.
        last = self.stop.push(self.stream.flush())
        return self._give(last if self.stopped else last + self.stop.flush())

    def _give(self, text: str) -> str:
        if text:
            self.pieces.append(text)
        return text
