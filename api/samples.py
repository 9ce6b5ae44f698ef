"""Text as inputs of a model: what calibration reads, and what quality is measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .frontends.dsl import Model
from .frontends.task import Task, columns, positions
from .frontends.tokenizer import Tokenizer
from .ir.errors import ConfigError
from .ir.graph import Graph
from .ir.slots import Stream
from .ir.tensors import Array
from .passes.differential import Case, attention_mask, sample_inputs
from .training.corpus import read_text

Sample = Mapping[str, Array]
"""Inputs of a model by name."""

Text = str | Path | Sequence[str]
"""A text, several, or a file with one."""

WINDOW = 512
"""Tokens that are read together, each window without what comes before it."""

_MEASURED = 24_000
"""Characters in which the tokens are that quality is measured on, more or less."""

_CHARACTERS = 16
"""Characters of text in which there is a token, whatever the language."""


def texts_of(given: Text) -> list[str]:
    """The texts; a str or Path that names a file is read. Raises ConfigError where there is none."""
    if isinstance(given, Path) or (isinstance(given, str) and _is_file(given)):
        found = [read_text(given)]
    else:
        found = [given] if isinstance(given, str) else list(given)
    if not any(t.strip() for t in found):
        raise ConfigError("there is no text to read", place=str(given) if isinstance(given, Path) else "")
    return found


def _is_file(text: str) -> bool:
    return len(text) < 4096 and "\n" not in text and Path(text).is_file()


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
        joined = "\n\n".join(texts_of(text))
        room = self._room(window)
        ids = self.tokenizer.encode(joined[: (tokens + window) * _CHARACTERS], add_special=False)[:tokens]
        return self._framed([ids[i : i + room] for i in range(0, len(ids), room)])

    def spread(self, text: Text, tokens: int, window: int = WINDOW) -> list[list[int]]:
        """Windows from all over a text, to calibrate on; not from the beginning of a long one, which is measured."""
        joined = "\n\n".join(texts_of(text))
        room = self._room(window)
        width = room * _CHARACTERS
        begin = _MEASURED if len(joined) > 4 * _MEASURED else 0
        starts = np.linspace(begin, max(begin, len(joined) - width), max(1, -(-tokens // room))).astype(int)
        pieces = [joined[at : at + width] for at in dict.fromkeys(starts.tolist())]
        return self._framed([self.tokenizer.encode(piece, add_special=False)[:room] for piece in pieces])

    def _room(self, window: int) -> int:
        """Tokens of text in a window."""
        if window < 8:
            raise ConfigError(f"window is {window}, expected at least 8 tokens")
        special = int(self.start is not None) if self.generates else len(self.tokenizer.encode(""))
        return max(2, min(window, self.positions) - special)

    def _framed(self, pieces: list[list[int]]) -> list[list[int]]:
        pieces = [p for p in pieces if len(p) > 1]
        if not pieces:
            raise ConfigError(f"the text has not even two tokens of {self.name}")
        if self.generates:
            return [[*([] if self.start is None else [self.start]), *p] for p in pieces]
        special = len(self.tokenizer.encode(""))
        return [self.tokenizer.encode(self.tokenizer.decode(p), max_length=len(p) + special) for p in pieces]


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
