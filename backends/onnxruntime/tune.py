"""Measured choice: of several legal builds of a model, the fastest on this machine, with what was measured."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...frontends.dsl import Model
from ...ir.errors import MonographError
from ...ir.silent import silent
from ...ir.tensors import Tensor
from ...ir.types import f32, f64
from ..target import Target
from .choices import Choices, choices_of
from .tune_cache import key_of, machine, read, write
from .tune_drafts import Draft, Subject, Workshop
from .tune_fields import Field, fields
from .tune_loads import DECODE, ENCODE, Load
from .tune_result import Final, Trial, Tuning
from .tune_timing import Timing, compared
from .tune_whole import whole_model

BUDGET = 60.0
"""Seconds that a tuning takes unless told otherwise."""

EQUAL, NARROW_EQUAL, ROUNDED = 2e-4, 2e-2, 0.05
"""Largest difference from the reference, relative to the largest expected value if that is above 1: in f32, in f16 and
bf16, and where weights are in blocks, so that products may round activations to 8 bits."""

_SEARCH, _TURN = 0.6, 1.5
"""Share of the budget for the search; seconds of one comparison."""

Progress = Callable[[float, str], None]
"""(share of the work that is done, what is tried now)."""


def tune(
    model: Model,
    weights: Mapping[str, Tensor],
    target: Target,
    *,
    loads: Sequence[Load] = (),
    budget: float = BUDGET,
    positions: int | None = None,
    threads: int | None = None,
    fine: Collection[str] = (),
    again: bool = False,
    progress: Progress | None = None,
) -> Tuning:
    """Choices for a model on this machine, one field after the other, each only where it is faster beyond the noise.

    loads: what is timed (none: DECODE or ENCODE). budget: seconds; fields that it does not reach keep the shipped
    choice. positions: most tokens a row may have, as for the build. threads: of sessions. fine: as for the build.
    again: measure also what was measured before on this machine. Raises what building raises, and RuntimeInputError
    where the provider cannot run here.
    """
    loads = tuple(loads) or (DECODE if model.task.generates else ENCODE)
    key = key_of(model, weights, target, loads, {"positions": positions, "threads": threads, "fine": sorted(fine)})
    known = None if again else read(key)
    if known is not None:
        return known
    with tempfile.TemporaryDirectory(prefix="monograph-tune-") as folder:
        place = Workshop(model, weights, target, Path(folder), loads, positions=positions, threads=threads, fine=fine)
        search = _Search(place, choices_of(target), budget, progress or silent)
        search.run()
        search.progress(_SEARCH, "the whole model")
        final = whole_model(model, weights, place, search.best.choices, search.shipped, max(0.0, search.left()))
        found = search.tuning(final)
    write(key, found)
    return found


@dataclass
class _Best:
    """The choices so far, and what was built by them."""

    choices: Choices
    drafts: str
    subject: Subject


class _Search:
    """One field after the other, over short versions of the model."""

    def __init__(self, place: Workshop, shipped: Choices, budget: float, progress: Progress) -> None:
        self.place, self.shipped, self.progress = place, shipped, progress
        self.start, self.budget = time.perf_counter(), budget
        self.trials: list[Trial] = []
        self.missed: list[str] = []
        drafts = place.drafts(shipped)
        self.best = _Best(shipped, _text(drafts), place.subject(drafts))
        self.bound = self.allowed()

    def left(self) -> float:
        return self.budget - (time.perf_counter() - self.start)

    def allowed(self) -> float:
        """How far a candidate may be off. The shipped choices say what the form of the weights costs by itself."""
        examples = self.place.examples
        found = self.best.subject.outputs(examples)
        if examples.expected is None:
            examples.expected = found
        encoded = any(self.place.weights[k].type.encoding is not None for k in examples.graph.params)
        dtype = self.place.target.dtype
        least = EQUAL if dtype in (f32, f64) else NARROW_EQUAL
        return max(ROUNDED if encoded else least, 2 * examples.difference(found))

    def run(self) -> None:
        every = fields()
        for i, field in enumerate(every):
            if self.left() < (1 - _SEARCH) * self.budget:
                self.missed = [f.name for f in every[i:]]
                break
            self.progress(_SEARCH * i / len(every), field.name)
            self.decide(field)

    def decide(self, field: Field) -> None:
        """Try everything that a field may be, and keep the fastest where it is faster."""
        tried: list[tuple[str, _Best]] = []
        for name, choices in field.candidates(self.best.choices):
            made = self.made(field, name, choices, [self.best.drafts, *(t.drafts for _, t in tried)])
            if made is not None:
                tried.append((name, made))
        if not tried:
            return
        timings = compared([self.best.subject, *(t.subject for _, t in tried)], _TURN)
        now = field.said(self.best.choices)
        fastest = min(range(len(tried)), key=lambda i: timings[i + 1].ratio)
        kept = timings[fastest + 1].faster
        self.trials.append(_trial(field, now, timings[0], "" if kept else "kept"))
        for i, (name, _) in enumerate(tried):
            lost = "too noisy to tell" if timings[i + 1].noisy else "not faster"
            outcome = "chosen" if kept and i == fastest else lost
            self.trials.append(_trial(field, name, timings[i + 1], outcome))
        if kept:
            self.best = tried[fastest][1]

    def made(self, field: Field, name: str, choices: Choices, known: Sequence[str]) -> _Best | None:
        """A candidate that is built, open and right; None where it is no other build, or not right."""
        try:
            drafts = self.place.drafts(choices)
            text = _text(drafts)
            if text in known:
                return None
            subject = self.place.subject(drafts)
            off = self.place.examples.difference(subject.outputs(self.place.examples))
        except MonographError as e:
            self.trials.append(Trial(field.name, name, (), 0.0, 0.0, f"cannot be built: {e.what}"))
            return None
        if off > self.bound:
            self.trials.append(
                Trial(field.name, name, (), 0.0, 0.0, f"not equal: off by {off:.2g}, allowed {self.bound:.2g}")
            )
            return None
        return _Best(choices, text, subject)

    def tuning(self, final: Final) -> Tuning:
        best = self.shipped if final.fell_back else self.best.choices
        whole, loads = self.place.versions.whole, tuple(map(str, self.place.loads))
        clean, shipped = replace(best, evidence=()), replace(self.shipped, evidence=())
        return Tuning(clean, shipped, tuple(self.trials), tuple(self.missed), final, whole, loads, machine())


def _text(drafts: Sequence[Draft]) -> str:
    return "\n".join(d.nodes for d in drafts)


def _trial(field: Field, name: str, timing: Timing, outcome: str) -> Trial:
    spread = timing.high - timing.low
    return Trial(field.name, name, tuple(1e3 * s for s in timing.seconds), timing.ratio, spread, outcome)
