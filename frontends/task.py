"""A task: the contract around a model. It owns the names of inputs and outputs, and says what follows from what."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir.display import Shown, Table
from ..ir.errors import MonographError, did_you_mean
from ..ir.slots import TARGETS, TOKENS, Stream
from ..ir.types import TensorType, parse_type

Array = np.ndarray[Any, Any]

TOKEN_TYPES = "token_type_ids"
"""Which part of a pair each token belongs to."""
PIXELS, FEATURES = "pixel_values", "input_features"
LABELS = "labels"
"""What a training step compares the main output with: not an input of a model, but of its graph with a loss."""
LOGITS, HIDDEN, POOLED = "logits", "last_hidden_state", "pooler_output"
STARTS, ENDS = "start_logits", "end_logits"


class Role(enum.Enum):
    """What an input is for."""

    ids = "ids"
    mask = "mask"
    positions = "positions"
    zeros = "zeros"
    """Integers along the tokens that are 0 unless said otherwise, such as token types."""
    features = "features"
    """Anything else: it must be given."""


@dataclass(frozen=True, repr=False)
class Task(Shown):
    """Names and types of what a model takes and gives.

    inputs: type by name, such as {"input_ids": "i64[B,S]"}; a model takes those that its function names. Float types
    follow the dtype of the graph, and a dimension called like a field of the config is that number. output: name for
    a model function that returns one value, and the main one of several. stream: the tokens that the model reads or
    generates one after another (None: `input_ids` and the other usual names, if `inputs` has them). source: the tokens
    that an encoder reads first. zeros: inputs along the tokens that are 0 if they are left out. generates: the model
    continues the stream. by_column: positions count columns, padding too, as encoders do.
    """

    name: str
    inputs: Mapping[str, str] = field(hash=False)
    output: str = LOGITS
    stream: Stream | None = None
    source: Stream | None = None
    zeros: tuple[str, ...] = (TOKEN_TYPES,)
    generates: bool = False
    by_column: bool = False

    def __post_init__(self) -> None:
        for name in self.inputs:
            self.type_of(name)
        if self.stream is None:
            found = next((s for s in (TARGETS, TOKENS) if s.ids in self.inputs), None)
            object.__setattr__(self, "stream", found)
        if self.source is None and self.stream == TARGETS and TOKENS.ids in self.inputs:
            object.__setattr__(self, "source", TOKENS)
        if self.generates and self.stream is None:
            raise MonographError(f"task {self.name!r} generates, but none of its inputs is a stream of tokens")

    def table(self) -> Table:
        """Inputs with their types and roles, and the outputs."""
        from .shown import task_table

        return task_table(self)

    def __str__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        """A task equals its name, as a member of a StrEnum does."""
        if isinstance(other, str):
            return self.name == other
        return isinstance(other, Task) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def _content(self) -> tuple[Any, ...]:
        fields = self.output, self.stream, self.source, self.zeros, self.generates, self.by_column
        return (self.name, dict(self.inputs), *fields)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """All streams that the model reads: that of an encoder first."""
        return tuple(s for s in (self.source, self.stream) if s is not None)

    @property
    def separated(self) -> bool:
        """Whether it is an encoder-decoder: an encoder reads an input first, and the stream attends to it."""
        return self.stream is not None and self.stream.length != TOKENS.length

    def role(self, name: str) -> Role:
        """The role of the input of that name."""
        for stream in self.streams:
            for role, own in zip((Role.ids, Role.mask, Role.positions), stream.names, strict=True):
                if name == own:
                    return role
        return Role.zeros if name in self.zeros else Role.features

    def type_of(self, name: str, sizes: object = None) -> TensorType:
        """The type of an input; dimensions named like integer attributes of `sizes` (a config) get their values.

        Raises MonographError for a name that is not an input of this task, and for a text that is not a type.
        """
        if name not in self.inputs:
            what = f"task {self.name!r} has no input {name!r}{did_you_mean(name, self.inputs)}"
            raise MonographError(what, hint=f"its inputs: {', '.join(self.inputs)}")
        type = parse_type(self.inputs[name])
        symbols = {s for d in type.shape if not isinstance(d, int) for s in d.symbols}
        known = {s: n for s in symbols if isinstance(n := getattr(sizes, s, None), int)}
        shape = tuple(d if isinstance(d, int) else d.substitute(known) for d in type.shape)
        return TensorType(type.dtype, shape)

    def fill(self, given: Mapping[str, Array], wanted: Collection[str], past: int = 0) -> dict[str, Array]:
        """Values for all `wanted` inputs: those given, and those that are computed from the ids of their stream.

        past: how many tokens of the main stream were read before; its mask covers them, too. Defaults: a mask is all
        ones, positions count what the mask keeps (by_column: columns), token types are 0. Raises MonographError
        naming an input that is missing.
        """
        found = dict(given)
        for stream in self.streams:
            if stream.ids in given:
                fill_stream(found, stream, past if stream is self.stream else 0, self.by_column)
        ids = next((found[s.ids] for s in self.streams if s.ids in found), None)
        for name in self.zeros:
            if ids is not None and name not in found:
                found[name] = np.zeros(ids.shape, np.int64)
        for name in wanted:
            if name not in found:
                raise MonographError(f"input {name} {self.inputs.get(name, '')} is missing")
        return {name: found[name] for name in wanted}


def fill_stream(values: dict[str, Array], stream: Stream, past: int = 0, by_column: bool = False) -> None:
    """Add the mask and the positions of `stream` to `values`, which has its ids [B,S], where they are left out."""
    batch, length = values[stream.ids].shape
    if stream.mask not in values:
        values[stream.mask] = np.ones((batch, past + length), np.int64)
    if stream.positions not in values:
        every = columns(batch, past + length) if by_column else positions(values[stream.mask])
        values[stream.positions] = every[:, -length:] if length else every[:, :0]


def positions(mask: Array) -> Array:
    """Where each token stands, i64 [B,T]: how many the mask keeps before it."""
    return np.maximum(np.cumsum(mask, axis=1, dtype=np.int64) - 1, 0)


def columns(batch: int, length: int) -> Array:
    """The number of each column, i64 [batch, length]."""
    return np.broadcast_to(np.arange(length, dtype=np.int64), (batch, length))


_TEXT = {**dict.fromkeys(TOKENS.names, "i64[B,S]"), TOKEN_TYPES: "i64[B,S]"}
_TARGET = dict.fromkeys(TARGETS.names, "i64[B,U]")

CAUSAL_LM = Task("causal-lm", _TEXT, generates=True)
MASKED_LM = Task("masked-lm", _TEXT, by_column=True)
SEQ2SEQ_LM = Task("seq2seq-lm", {**_TEXT, **_TARGET}, generates=True)
FEATURE_EXTRACTION = Task("feature-extraction", _TEXT, HIDDEN, by_column=True)
SEQUENCE_CLASSIFICATION = Task("sequence-classification", _TEXT, by_column=True)
TOKEN_CLASSIFICATION = Task("token-classification", _TEXT, by_column=True)
QUESTION_ANSWERING = Task("question-answering", _TEXT, STARTS, by_column=True)
IMAGE_CLASSIFICATION = Task("image-classification", {PIXELS: "f32[B,channels,height,width]"})
SPEECH_TO_TEXT = Task("speech-to-text", {FEATURES: "f32[B,mels,frames]", **_TARGET}, generates=True)

TASKS = {
    str(task): task
    for task in (
        CAUSAL_LM,
        MASKED_LM,
        SEQ2SEQ_LM,
        FEATURE_EXTRACTION,
        SEQUENCE_CLASSIFICATION,
        TOKEN_CLASSIFICATION,
        QUESTION_ANSWERING,
        IMAGE_CLASSIFICATION,
        SPEECH_TO_TEXT,
    )
}
"""The tasks that are built in, by name."""


def task_of(task: str | Task) -> Task:
    """A task by its name, or itself. Raises MonographError for an unknown name."""
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise MonographError(
            f"no task is called {task!r}{did_you_mean(task, TASKS)}", hint=f"known: {', '.join(TASKS)}"
        )
    return TASKS[task]
