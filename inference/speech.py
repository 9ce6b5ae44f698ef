"""Speech to text: spectrograms read by the encoder, and a decoder that begins with what it is asked to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..frontends.audio import LogMel
from ..frontends.task import FEATURES
from ..frontends.tokenizer import Tokenizer
from ..ir.errors import RuntimeInputError, did_you_mean
from . import generate
from .generate import Generation, Settings
from .grammar import Grammars
from .guesses import Cuttable
from .sampling import Array, without
from .strategies import Strategy

START, NO_TIMES = "<|startoftranscript|>", "<|notimestamps|>"
KINDS = ("transcribe", "translate")


class Session(Cuttable, generate.Shared, Protocol):
    """A decoder behind an encoder."""

    def encode(self, inputs: Mapping[str, Any]) -> None:
        """Read what the text is about."""
        ...


class Listening:
    """A session that reads speech before each prompt.

    always: tokens that it never gives. first: those that it does not give right after the prompt.
    """

    def __init__(self, session: Session, features: Array, always: Sequence[int], first: Sequence[int]) -> None:
        self.session, self.features, self.always, self.first = session, features, list(always), list(first)

    @property
    def lengths(self) -> Array:
        return self.session.lengths

    @property
    def owner(self) -> object:
        return self.session.owner

    def prefill(self, tokens: Array, lengths: Array) -> Array:
        self.session.encode({FEATURES: self.features})
        return without(self.session.prefill(tokens, lengths), [*self.always, *self.first])

    @property
    def uncut(self) -> str:
        return self.session.uncut

    def append(self, tokens: Any, lengths: Any = None, *, every: bool = False) -> Array:
        found = self.session.append(tokens, lengths, every=every)
        return without(found.reshape(-1, found.shape[-1]), self.always).reshape(found.shape)

    def truncate(self, lengths: Any) -> None:
        self.session.truncate(lengths)

    def reorder(self, parents: Any, common: Any = None) -> None:
        self.session.reorder(parents, common)

    def step(self, tokens: Array) -> Array:
        return without(self.session.step(tokens), self.always)


def transcribe(
    session: Session,
    tokenizer: Tokenizer,
    hear: LogMel,
    speech: Sequence[Array],
    *,
    language: str = "en",
    kind: str = "transcribe",
    suppress: Sequence[int] = (),
    suppress_first: Sequence[int] = (),
    **settings: Any,
) -> list[Generation]:
    """What is said in each of several pieces of speech, samples f32 [N] at the rate of `hear`, or its translation.

    language: of the speech, as a code. kind: transcribe, or translate into English. suppress, suppress_first: ids that
    are never given, and not as the first token. settings: see `Settings`. A piece beyond the seconds of a spectrogram
    is cut there. Raises RuntimeInputError for a language or kind that the tokenizer has no token for.
    """
    if kind not in KINDS:
        raise RuntimeInputError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    prompt = [_special(tokenizer, name) for name in (START, f"<|{language}|>", f"<|{kind}|>", NO_TIMES)]
    features = np.stack([hear(samples) for samples in speech])
    strategy, rest = Strategy.of(settings)
    rows = [list(prompt) for _ in speech]
    # Beams have their own way to leave tokens out, after the logarithm.
    left_out = ((), ()) if strategy.beams is not None else (suppress, suppress_first)
    listening = Listening(session, features, *left_out)
    decoding = strategy.decoding(
        listening, tokenizer, rows, Settings.of(rest), None, grammars=lambda: Grammars(tokenizer), source={},
        suppress=suppress, suppress_first=suppress_first,
    )  # fmt: skip
    for _ in decoding:
        pass
    return decoding.results()


def _special(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.core.token_to_id(name)
    if found is None:
        raise RuntimeInputError(f"the tokenizer has no token {name}")
    return found
