"""The JSON of answers to completions and chats: whole, and piece by piece."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...frontends.tokenizer import Tokenizer
from ..generate import Reason
from ..logprobs import Logprob
from ..request import Piece

Answer = dict[str, Any]
FINISH: Mapping[Reason, str] = {"eos": "stop", "stop": "stop", "length": "length", "cancelled": "stop"}


@dataclass
class Head:
    """What is the same in every chunk of one answer."""

    kind: str
    model: str
    prefix: str
    fingerprint: str
    id: str = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.id, self.created = f"{self.prefix}-{uuid.uuid4().hex}", int(time.time())

    def fill(self, choices: Sequence[Answer], *, kind: str | None = None, **more: Any) -> Answer:
        """The answer with these choices."""
        return {
            "id": self.id,
            "object": kind or self.kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
            "system_fingerprint": self.fingerprint,
            **more,
        }


def usage(prompts: int, cached: int, new: int) -> Answer:
    """Tokens read and chosen. prompts: each prompt counts once, whatever the number of its choices."""
    return {
        "prompt_tokens": prompts,
        "completion_tokens": new,
        "total_tokens": prompts + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def token_text(tokenizer: Tokenizer | None, id: int) -> str:
    """A single token as text, special ones too."""
    return tokenizer.decode([id], skip_special=False) if tokenizer is not None else f"token_id:{id}"


def chat_logprobs(
    tokenizer: Tokenizer | None, found: Sequence[Logprob], spelling: Callable[[int], bytes | None]
) -> Answer:
    """Log-probabilities as chats tell them: of the model's own distribution, before temperature and filters.

    spelling: the bytes of a token, which may be a part of a character; None where they are not known.
    """

    def one(id: int, value: float) -> Answer:
        spelled = spelling(id)
        told = None if spelled is None else list(spelled)
        return {"token": token_text(tokenizer, id), "logprob": finite(value), "bytes": told}

    return {
        "content": [{**one(x.id, x.raw), "top_logprobs": [one(i, v) for i, v in x.top_raw]} for x in found],
        "refusal": None,
    }


@dataclass
class TextLogprobs:
    """Log-probabilities as completions tell them; offsets go on from piece to piece."""

    tokenizer: Tokenizer | None
    top: int
    offset: int = 0

    def tell(self, found: Sequence[Logprob | None], ids: Sequence[int]) -> Answer:
        """Of these ids; a None is the first token of a prompt."""
        texts = [token_text(self.tokenizer, i) for i in ids]
        offsets: list[int] = []
        for text in texts:
            offsets.append(self.offset)
            self.offset += len(text)
        tops = [
            None if x is None else {token_text(self.tokenizer, i): finite(v) for i, v in [*x.top_raw, (x.id, x.raw)]}
            for x in found
        ]
        return {
            "tokens": texts,
            "token_logprobs": [None if x is None else finite(x.raw) for x in found],
            "top_logprobs": tops if self.top else None,
            "text_offset": offsets,
        }


def finite(value: float) -> float:
    """A log-probability as JSON has numbers: what cannot happen is -9999, as OpenAI writes it."""
    return max(value, -9999.0)


def kept(piece: Piece) -> list[Logprob]:
    """Log-probabilities of the tokens of a piece, without that of an end token."""
    return piece.logprobs[: len(piece.ids)]


def event(content: Answer) -> str:
    """One event of a stream."""
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


DONE = "data: [DONE]\n\n"
