"""Text as inputs of a model: what calibration reads, and what quality is measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .frontends.dsl import Model
from .frontends.task import Task, columns, positions
from .frontends.tokenizer import Tokenizer
from .ir.errors import ConfigError
from .ir.graph import Graph
from .ir.slots import Stream
from .ir.tensors import Array
from .passes.differential import Case, attention_mask, sample_inputs
from .texts import Text, beginning, pieces

Sample = Mapping[str, Array]
"""Inputs of a model by name."""

WINDOW = 512
"""Tokens that are read together, each window without what comes before it."""

_MEASURED = 24_000
"""Characters in which the tokens are that quality is measured on, more or less."""

_CHARACTERS = 16
"""Characters of text in which there is a token, whatever the language."""


@dataclass(frozen=True)
class Reader:
    """How a model reads text: as windows of ids. generates: it continues them. start: what a window begins with."""

    name: str
    tokenizer: Tokenizer
    positions: int
    generates: bool
    start: int | None = None

    @staticmethod
    def of(name: str, tokenizer: Tokenizer | None, positions: int, *, generates: bool, source: bool) -> Reader:
        """source: whether an encoder reads a text of its own. Raises ConfigError where there is no tokenizer."""
        if tokenizer is None:
            raise ConfigError(f"{name} has no tokenizer, so a text says nothing about it")
        framed = tokenizer.encode("a") != tokenizer.encode("a", add_special=False)
        start = tokenizer.start_id if source else tokenizer.bos_id if framed else None
        return Reader(name, tokenizer, positions, generates, start if generates else None)

    @staticmethod
    def of_model(model: Model) -> Reader:
        """How a model reads text. Raises ConfigError for one that does not."""
        if not streams_of(model.task, model.graph()):
            raise ConfigError(f"{model.name} is a {model.task} model, which reads no text")
        generates, source = model.task.generates, model.task.separated
        return Reader.of(model.name, model.tokenizer, _positions(model), generates=generates, source=source)

    def first(self, text: Text, tokens: int, window: int = WINDOW) -> list[list[int]]:
        """The first tokens of a text, window by window."""
        room = self._room(window)
        ids = self.tokenizer.encode(beginning(text, (tokens + window) * _CHARACTERS), add_special=False)[:tokens]
        return self._framed([ids[i : i + room] for i in range(0, len(ids), room)])

    def spread(self, text: Text, tokens: int, window: int = WINDOW) -> list[list[int]]:
        """Windows from all over a text, to calibrate on; not from the beginning of a long one, which is measured."""
        room = self._room(window)
        found = pieces(text, room * _CHARACTERS, max(1, -(-tokens // room)), _MEASURED)
        return self._framed([self.tokenizer.encode(piece, add_special=False)[:room] for piece in found])

    def _room(self, window: int) -> int:
        """Tokens of text in a window."""
        if window < 8:
            raise ConfigError(f"window is {window}, expected at least 8 tokens")
        special = int(self.start is not None) if self.generates else len(self.tokenizer.encode(""))
        return max(2, min(window, self.positions) - special)

    def _framed(self, given: list[list[int]]) -> list[list[int]]:
        windows = [p for p in given if len(p) > 1]
        if not windows:
            raise ConfigError(f"the text has not even two tokens of {self.name}")
        if self.generates:
            return [[*([] if self.start is None else [self.start]), *p] for p in windows]
        special = len(self.tokenizer.encode(""))
        return [self.tokenizer.encode(self.tokenizer.decode(p), max_length=len(p) + special) for p in windows]


def _positions(model: Model) -> int:
    """Most tokens that the config of a model allows."""
    found = getattr(model.config, "max_positions", None)
    return found if isinstance(found, int) and found > 0 else 2**31


def samples_of(model: Model, rows: Sequence[Sequence[int]]) -> list[Sample]:
    """One sample a row of ids. Other inputs are as the task has them; features, which no text gives, are random."""
    graph = model.graph()
    found: list[Sample] = []
    for seed, row in enumerate(rows):
        sample = inputs_of(model.task, graph, Case("all-ones", 1, length=len(row)), seed)
        found.append(sample | {s.ids: np.array([row], np.int64) for s in streams_of(model.task, graph)})
    return found


def random_samples(model: Model, count: int = 2, length: int = 64) -> list[Sample]:
    """Random inputs of a model for which there is no text."""
    graph = model.graph()
    length = min(length, _positions(model))
    return [inputs_of(model.task, graph, Case("all-ones", 1, length=length), seed) for seed in range(count)]


def streams_of(task: Task, graph: Graph) -> tuple[Stream, ...]:
    """All tokens that a graph reads, those that it makes or continues first."""
    both = (graph.stream, *task.streams)
    return tuple(dict.fromkeys(s for s in both if s is not None and s.ids in graph.inputs))


def reads_mask(graph: Graph, stream: Stream) -> bool:
    """Whether a graph can be told which tokens of a stream count."""
    mask = graph.inputs.get(stream.mask)
    return mask is not None and bool(mask.users)


def mask_of(case: Case) -> Array:
    return attention_mask(case.mask, case.batch, case.length)


def inputs_of(task: Task, graph: Graph, case: Case, seed: int = 0) -> dict[str, Array]:
    """Inputs of a plain graph for one case: masks of its kind where they are read, and positions that follow, in the
    way of the task."""
    found = sample_inputs(graph, case, seed)
    for stream in streams_of(task, graph):
        told = reads_mask(graph, stream)
        mask = mask_of(case) if told else np.ones((case.batch, case.length), np.int64)
        counted = told and not task.by_column
        given = {stream.mask: mask, stream.positions: positions(mask) if counted else columns(*mask.shape)}
        found |= {k: np.ascontiguousarray(v) for k, v in given.items() if k in graph.inputs}
    return found
