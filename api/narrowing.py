"""Keys and values in 8 bits: scales from what a model remembers of a text, and what that costs on another."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .backends.target import Target
from .frontends.dsl import Model
from .frontends.task import LOGITS
from .ir.errors import LoweringError, WeightsError
from .ir.slots import Growth, Slot
from .ir.tensors import Array
from .ir.types import f32
from .ir.weights import NO_WEIGHTS, Weights
from .passes.narrow_cache import MOST, scale_of
from .passes.quantize.settings import Quantization

if TYPE_CHECKING:
    from .backends.onnxruntime import Session

READ, WINDOW, ROWS = 2048, 128, 8
"""Tokens of text that are read, in windows; how many windows a model writes itself where no text is given."""

BOUND = 0.01
"""Most nats by which next tokens may diverge from those with numbers in full width, where no quality is asked for."""


@dataclass(frozen=True)
class NarrowCache:
    """What was found about keys and values in 8 bits.

    source: the text that the scales come from. slots: how many remember codes. divergence: mean KL divergence in nats
    of next tokens, and agreement: share of likeliest tokens that are equal, on `tokens` others than the scales' own.
    """

    source: str
    slots: int
    tokens: int
    divergence: float
    agreement: float

    def __str__(self) -> str:
        return (
            f"{self.slots} slots in 8 bits with a scale a channel from {self.source}; on {self.tokens} other tokens "
            f"divergence {self.divergence:.2g} nats, likeliest token equal {100 * self.agreement:.1f} %"
        )


def narrowed(
    model: Model, asked: Quantization | None, target: Target, folder: Path, positions: int | None = None
) -> tuple[Model, NarrowCache | None]:
    """The model with scales among its weights, and what they cost; both as they are where that is not asked.

    Builds and runs the model twice beside `folder`. Raises LoweringError for a target without such kernels, for a
    model that remembers nothing in keys and values, and where the cost is beyond what was asked, or BOUND.
    """
    if asked is None or not asked.cache:
        return model, None
    if model.weights is None:
        raise WeightsError(f"model {model.name} has no weights", hint=NO_WEIGHTS)
    if target.provider != "cpu" or target.dtype != f32:
        raise LoweringError(f"a cache in 8 bits is built for cpu in f32, not for {target}")
    near = next(p for p in (folder.absolute().parent, *folder.absolute().parents) if p.is_dir())
    with tempfile.TemporaryDirectory(dir=near, prefix=f".{folder.name[:50]}-", suffix=".cache") as place:
        wide = _session(model, target, Path(place) / "wide", positions)
        slots = [s for s in wide.contract.slots if s.growth in (Growth.append, Growth.window) and s.type.rank == 4]
        if not slots or wide.contract.encoder or wide.contract.output != LOGITS:
            raise LoweringError(f"{model.name} has no keys and values of a text that goes on, to keep in 8 bits")
        rows, source = _rows(model, wide, asked)
        seen, unseen = rows[::2], rows[1::2]
        scales = _scales(wide, slots, seen)
        served = dataclasses.replace(
            model, weights=Weights({**model.weights, **Weights.of(scales)}, model.weights.place)
        )
        found = _cost(wide, _session(served, target, Path(place) / "narrow", positions), unseen, source, len(slots))
    bound = BOUND if asked.quality is None else math.log1p(asked.quality)
    if not found.divergence <= bound:
        what = f"keys and values in 8 bits cost {found.divergence:.2g} nats, and {bound:g} are allowed"
        raise LoweringError(what, place=model.name, details=[str(found)])
    return served, found


def _session(model: Model, target: Target, folder: Path, positions: int | None) -> Session:
    from .backends.onnxruntime import build
    from .backends.onnxruntime import open as open_session

    return open_session(build(model, None, folder, target, max_positions=positions).folder)


def _rows(model: Model, session: Session, asked: Quantization) -> tuple[list[list[int]], str]:
    """At least two windows of ids, and where they come from: the text that was given, else what the model writes."""
    from .samples import Reader

    window = min(WINDOW, session.contract.limit)
    if asked.calibrate is not None:
        rows = Reader.of_model(model).spread(asked.calibrate, READ, window)
        halves = [part for row in rows for part in (row[: len(row) // 2], row[len(row) // 2 :])]
        return (rows if len(rows) > 1 else [h for h in halves if h]), "the text that was given"
    return _written(session, window), "what the model writes itself"


def _written(session: Session, length: int) -> list[list[int]]:
    """Texts that a model writes at temperature 1, from any first token on."""
    rng = np.random.default_rng(0)
    ids = session.contract.stream.ids if session.contract.stream is not None else ""
    first = rng.integers(0, session.contract.bounds.get(ids, 2), ROWS)
    tokens = [first]
    logits = session.prefill(first[:, None], np.ones(ROWS, np.int64))
    for _ in range(length - 1):
        chances: Array = rng.random((len(logits), int(logits.shape[1])))
        tokens.append(np.argmax(logits - np.log(-np.log(chances)), -1))
        if len(tokens) < length:
            logits = session.step(tokens[-1])
    return np.stack(tokens, 1).tolist()


def _scales(session: Session, slots: Sequence[Slot], rows: Sequence[Sequence[int]]) -> dict[str, Array]:
    """Scales f32 [K,D] by name: the largest magnitude of each channel is the largest code."""
    most: dict[str, Array] = {}
    for row in rows:
        outputs = _run(session, row)
        for slot in slots:
            found = np.max(np.abs(outputs[slot.output]), axis=(0, 2))
            most[slot.input] = np.maximum(most[slot.input], found) if slot.input in most else found
    return {scale_of(k): np.where(v > 0, v / MOST, 1).astype(np.float32) for k, v in most.items()}


def _run(session: Session, row: Sequence[int]) -> Mapping[str, Array]:
    stream = session.contract.stream
    assert stream is not None
    return session.run({stream.ids: np.array([row], np.int64)})


def _cost(wide: Session, narrow: Session, rows: Sequence[Sequence[int]], source: str, slots: int) -> NarrowCache:
    """How far next tokens are from each other after each token of the rows."""
    divergence, equal, tokens = 0.0, 0, 0
    for row in rows:
        a, b = (_logs(_run(session, row)[LOGITS][0]) for session in (wide, narrow))
        divergence += float((np.exp(a) * (a - b)).sum())
        equal += int((a.argmax(-1) == b.argmax(-1)).sum())
        tokens += len(row)
    return NarrowCache(source, slots, tokens, divergence / tokens, equal / tokens)


def _logs(logits: Array) -> Array:
    """Log-probabilities f64 of logits [S,V]."""
    x = logits.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))
