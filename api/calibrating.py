"""Quantization that looks at activations: of a text where there is one, of random tokens where not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .budgets import within_budget
from .frontends.dsl import Model
from .ir.encodings import Encoding, int8
from .ir.silent import silent
from .ir.tensors import Array, Tensor
from .ir.types import DType
from .passes.quantize.calibration import Calibrated, Calibration
from .passes.quantize.choose import Planned
from .passes.quantize.methods import plain_method
from .passes.quantize.plan import Choice, Method, Plan
from .passes.quantize.settings import CALIBRATED, Quantization
from .passes.quantize.statistics import gram_type
from .passes.quantize.stream import layers_of
from .passes.quantize.traps import Trap, traps
from .samples import Reader, Sample, random_samples, samples_of

TOKENS, WINDOW = 8192, 512
"""Tokens of the text that are read to calibrate, and how many at a time."""

_LOOK, _PART = 2, 128
"""Samples that are looked at for channels that 8 bits do not bear, and tokens of each."""

_BESIDE = 32
"""Block length for a layer that cannot round each of its rows of activations as a whole."""


@dataclass(frozen=True)
class Prepared:
    """What is rounded and how. fine: weights whose activations are multiplied whole. trapped: why, by name."""

    weights: Mapping[str, Tensor]
    planned: Planned
    trapped: Mapping[str, Trap] = field(default_factory=dict[str, Trap])

    @property
    def fine(self) -> frozenset[str]:
        return frozenset(self.trapped)


def base_of(asked: Quantization) -> Method:
    """Who chooses the scales: the method asked for, or what a method that looks at text rounds with."""
    return plain_method("rtn" if asked.chosen_method in CALIBRATED else asked.chosen_method)


def calibration_bytes(model: Model, asked: Quantization) -> int:
    """What GPTQ holds beside a tensor: x.T @ x of the widest layer, its factor, and what is between them."""
    if asked.chosen_method != "gptq":
        return 0
    widths = (layer.node.value("x").shape[-1] for layer in layers_of(model.graph()))
    widest = max((n for n in widths if isinstance(n, int)), default=0)
    return 5 * widest * widest * gram_type(widest).bits // 8


def samples_for(model: Model, asked: Quantization | None) -> list[Sample]:
    """What calibration reads. Raises ConfigError for a text that the model cannot read."""
    if asked is None or asked.calibrate is None:
        return random_samples(model)
    return samples_of(model, Reader.of_model(model).spread(asked.calibrate, TOKENS, WINDOW))


def prepared(
    model: Model,
    asked: Quantization,
    planned: Planned,
    place: Path,
    narrow: Callable[[Encoding], bool],
    dtype: DType,
    progress: Callable[[str], None] | None = None,
) -> Prepared:
    """Weights and plan as the method wants them, and the layers whose activations do not bear 8 bits.

    narrow: whether the target multiplies weights of an encoding by activations that it rounds to 8 bits.
    """
    assert model.weights is not None
    graph, told = model.graph(), progress or silent
    samples = samples_for(model, asked)
    weights: Mapping[str, Tensor] = model.weights
    if asked.chosen_method in CALIBRATED:
        told(f"{asked.chosen_method}: reading the text layer by layer")
        calibration = Calibration(graph, weights, samples, place, lambda _, __, name: told(name))
        done = _calibrated(calibration, planned.choices, asked.chosen_method)
        weights = done.weights
        planned = Planned(_noted(done), planned.wide)
    if asked.quality is not None or asked.size is not None:
        whole = trapped_in(model, weights, planned.choices, samples, place, narrow) if asked.quality is not None else {}
        planned = within_budget(
            model, weights, asked, planned, samples, place, dtype, told, lambda k, e: narrow(e) and k not in whole
        )
    trapped = trapped_in(model, weights, planned.choices, samples, place, narrow)
    return Prepared(weights, Planned(_without_rows(planned.choices, trapped, dtype), planned.wide), trapped)


def trapped_in(
    model: Model,
    weights: Mapping[str, Tensor],
    plan: Plan,
    samples: list[Sample],
    place: Path,
    narrow: Callable[[Encoding], bool],
) -> dict[str, Trap]:
    """The layers, of a plan or stored in blocks already, whose activations do not bear 8 bits."""
    encodings = {k: t.type.encoding for k, t in weights.items() if t.type.encoding is not None}
    encodings |= {k: c.encoding for k, c in plan.items()}
    rounded = {k: e for k, e in encodings.items() if narrow(e)}
    if not rounded:
        return {}
    return traps(model.graph(), weights, rounded, _shortened(model, samples), place)


def _calibrated(calibration: Calibration, plan: Plan, method: str) -> Calibrated:
    return calibration.gptq(plan, ordered=True) if method == "gptq" else calibration.scaled(plan, method)


def _noted(done: Calibrated) -> dict[str, Choice]:
    """The plan with what could not be done."""
    return {
        k: dataclasses.replace(c, why="; ".join(filter(None, (c.why, done.notes.get(k, "")))))
        for k, c in done.plan.items()
    }


def _without_rows(plan: Plan, trapped: Mapping[str, Trap], dtype: DType) -> dict[str, Choice]:
    """A plan whose trapped layers have blocks: where a row has one scale, nothing takes activations in two parts."""
    found: dict[str, Choice] = {}
    for name, choice in plan.items():
        e, why, method = choice.encoding, choice.why, choice.method
        if name in trapped:
            why = "; ".join(filter(None, (why, f"activations in full: {trapped[name]}")))
            if not e.block:
                e, method = dataclasses.replace(int8.by_block(_BESIDE, scale=dtype), axis=e.axis), plain_method("rtn")
        found[name] = Choice(e, method, why)
    return found


def _shortened(model: Model, samples: list[Sample]) -> list[Sample]:
    """A few short samples."""
    graph = model.graph()
    chosen = samples[:: max(1, len(samples) // _LOOK)][:_LOOK]
    streams = {s.length for s in (*model.task.streams, graph.stream) if s is not None}
    return [
        {k: _cut(v, [i for i, d in enumerate(graph.inputs[k].shape) if str(d) in streams]) for k, v in s.items()}
        for s in chosen
    ]


def _cut(x: Array, axes: Sequence[int]) -> Array:
    """The first numbers along some axes."""
    for axis in axes:
        x = x.take(range(min(_PART, x.shape[axis])), axis=axis)
    return x
