"""Mixed precision: as few bits as a budget of size or of quality allows, more where they are needed most."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .frontends.dsl import Model
from .frontends.task import LOGITS
from .ir.display import size
from .ir.encodings import Encoding, int8
from .ir.errors import ConfigError
from .ir.tensors import Array, Tensor
from .ir.types import DType
from .passes.quantize.activations import rounding
from .passes.quantize.calibration import Ready
from .passes.quantize.choose import Planned
from .passes.quantize.methods import plain_method
from .passes.quantize.plan import Choice, Plan, rounded
from .passes.quantize.sensitivity import Level, Move, Unit, after, moves_of, size_after, units_of
from .passes.quantize.settings import Quantization
from .passes.quantize.stream import Stream
from .samples import Reader, Sample, samples_of

MEASURED = 4000
"""Tokens of the text on which a choice is measured: those on which the build is, when it is done."""

_TRIALS = 6
"""Choices that are measured after the two ends."""

_BLOCK = 32

_LARGEST = math.log(sys.float_info.max)


@dataclass(frozen=True)
class _Search:
    """What can be chosen: the forms, the units with their errors, and the order in which they widen."""

    levels: list[Level]
    units: list[Unit]
    moves: list[Move]
    rest: int

    def bytes(self, count: int) -> int:
        """Bytes of all weights after so many moves."""
        return self.rest + size_after(self.units, self.moves, count)

    def weights(self, weights: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
        """The weights as they are after so many moves."""
        chosen = after(self.units, self.moves, count)
        return dict(weights) | {k: self.levels[i].tensors[k] for k, i in chosen.items() if k in self.levels[i].tensors}


def within_budget(
    model: Model,
    weights: Mapping[str, Tensor],
    asked: Quantization,
    planned: Planned,
    samples: Sequence[Sample],
    place: Path,
    dtype: DType,
    progress: Callable[[str], None],
    rounds: Callable[[str, Encoding], bool] = lambda name, encoding: False,
) -> Planned:
    """The plan with more bits where the budgets of size and quality allow or want them.

    rounds: whether the target multiplies a weight of an encoding by activations in 8 bits, which costs quality, too.
    Raises ConfigError with the numbers where they cannot be met.
    """
    search = _search(model, weights, planned, samples, place, dtype, progress)
    most = len(search.moves)
    if asked.size is not None:
        if search.bytes(0) > asked.size:
            what = f"size is {size(asked.size)}, but with every weight in {asked.weights} it is {size(search.bytes(0))}"
            raise ConfigError(what, place="quantize", hint="ask for fewer bits")
        most = max(i for i in range(len(search.moves) + 1) if search.bytes(i) <= asked.size)
    count = most
    if asked.quality is not None:
        count = _least(_Score(model, asked, place, rounds), weights, asked, search, most, progress)
    return _planned(planned, search, count)


def _search(
    model: Model,
    weights: Mapping[str, Tensor],
    planned: Planned,
    samples: Sequence[Sample],
    place: Path,
    dtype: DType,
    progress: Callable[[str], None],
) -> _Search:
    wider = {k: _wider(c, dtype) for k, c in planned.choices.items() if c.encoding.bits < 8 or not c.encoding.block}
    levels = [_level("narrow", planned.choices, weights, place), _level("int8", wider, weights, place)]
    plain = {k: math.prod(weights[k].shape) * dtype.bits // 8 for k in planned.choices}
    levels.append(Level("wide", {}, plain))
    progress("measuring each weight")
    units = units_of(model.graph(), weights, levels, samples, place)
    rest = sum(t.bytes for k, t in weights.items() if k not in planned.choices)
    return _Search(levels, units, moves_of(units), rest)


def _wider(choice: Choice, dtype: DType) -> Choice:
    """The same weight in 8 bits by block."""
    block = choice.encoding.block or _BLOCK
    e = dataclasses.replace(int8.by_block(block, scale=dtype), axis=choice.encoding.axis)
    return Choice(e, plain_method("rtn"), choice.why)


def _level(name: str, plan: Plan, weights: Mapping[str, Tensor], place: Path) -> Level:
    """A form of all weights of a plan, rounded on the disk."""
    folder = place / name
    folder.mkdir()
    made = {r.name: r.tensor for r in rounded(weights, plan, folder)}
    return Level(name, made, {k: t.lines.bytes for k, t in made.items()})


def _least(
    score: _Score,
    weights: Mapping[str, Tensor],
    asked: Quantization,
    search: _Search,
    most: int,
    progress: Callable[[str], None],
) -> int:
    """The fewest moves with which perplexity rises by no more than was asked."""
    assert asked.quality is not None
    progress("measuring the model")
    before = score.before(weights)
    if not math.isfinite(before):
        what = f"quality is {asked.quality:.2%}, but {score.name} of the model itself is {before} on that text"
        raise ConfigError(what, place="quantize")

    def rise(count: int) -> float:
        found = score(search.weights(weights, count))
        progress(f"{score.name} {found:.4g}, before {before:.4g}, with {size(search.bytes(count))}")
        return score.rise(found, before)

    if rise(0) <= asked.quality:
        return 0
    worst = rise(most)
    if not worst <= asked.quality:
        what = (
            f"quality is {asked.quality:.2%}, but {score.name} rises by {worst:.2%} with {size(search.bytes(most))}, "
        )
        what += "all that size allows" if asked.size is not None else "every weight as wide as it was"
        raise ConfigError(what, place="quantize")
    low, high = 0, most
    for _ in range(_TRIALS):
        middle = (low + high) // 2
        if middle == low:
            break
        if rise(middle) <= asked.quality:
            high = middle
        else:
            low = middle
    return high


class _Score:
    """Perplexity of a text, or how far the output is off where the model does not continue text."""

    def __init__(self, model: Model, asked: Quantization, place: Path, rounds: Callable[[str, Encoding], bool]) -> None:
        assert asked.calibrate is not None
        self.rows = Reader.of_model(model).first(asked.calibrate, MEASURED)
        self.model, self.place, self.rounds = model, place, rounds
        self.samples = samples_of(model, self.rows)
        self.continues = model.task.generates and model.task.output == LOGITS
        self.name = "perplexity" if self.continues else "the error of the output"
        self.wide: list[Array] = []

    def before(self, weights: Mapping[str, Tensor]) -> float:
        """Of the model itself, in float."""
        return self._score(weights, {})

    def __call__(self, weights: Mapping[str, Tensor]) -> float:
        """With weights as they are stored, and activations as they are multiplied with them."""
        encodings = {k: t.type.encoding for k, t in weights.items() if t.type.encoding is not None}
        return self._score(weights, {k: e for k, e in encodings.items() if self.rounds(k, e)})

    def _score(self, weights: Mapping[str, Tensor], encodings: Mapping[str, Encoding]) -> float:
        stream = Stream(self.model.graph(), weights, self.samples, self.place, rounding(encodings))
        outputs = (o[self.model.task.output][0] for o in stream.outputs())
        if self.continues:
            return perplexity(outputs, self.rows)
        found = [np.asarray(o, np.float64) for o in outputs]
        self.wide = self.wide or found
        off = sum(float(np.square(a - b).sum()) for a, b in zip(found, self.wide, strict=True))
        return (off / max(sum(float(np.square(b).sum()) for b in self.wide), 1e-30)) ** 0.5

    def rise(self, found: float, before: float) -> float:
        """By how much it is worse than before."""
        return found / before - 1 if self.continues else found


def perplexity(outputs: Any, rows: Sequence[Sequence[int]]) -> float:
    """Of the tokens after the first of each row, from logits [S,V] a row."""
    total, count = 0.0, 0
    for logits, row in zip(outputs, rows, strict=True):
        for at in range(0, len(row) - 1, 64):
            piece = log_softmax(logits[at : min(at + 64, len(row) - 1)])
            targets = np.array(row[at + 1 : at + 1 + len(piece)])
            total -= float(piece[np.arange(len(piece)), targets].sum())
            count += len(piece)
    return exponential(total / max(count, 1))


def exponential(x: float) -> float:
    """exp(x), infinity where that is no float."""
    return math.exp(x) if not x > _LARGEST else math.inf


def log_softmax(logits: Array) -> Array:
    """Log probabilities f64 [R,V] of logits [R,V]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _planned(planned: Planned, search: _Search, count: int) -> Planned:
    """The plan after so many moves, with what was rounded already."""
    chosen = after(search.units, search.moves, count)
    errors = {k: u.errors[0] ** 0.5 for u in search.units for k in u.weights}
    choices: dict[str, Choice] = {}
    wide = dict(planned.wide)
    for name, choice in planned.choices.items():
        level = search.levels[chosen[name]]
        why = f"its output is off by {errors[name]:.1%} in {choice.encoding}"
        tensor: Any = level.tensors.get(name)
        if tensor is None:
            wide[name] = f"stays wide: {why}"
        else:
            moved = chosen[name] > min(i for i, v in enumerate(search.levels) if name in v.tensors)
            told = "; ".join(filter(None, (choice.why, f"more bits: {why}" if moved else "")))
            method = "rtn" if moved else choice.method.name
            choices[name] = Choice(tensor.encoding, Ready(method, tensor.lines), told)
    return Planned(choices, wide)
