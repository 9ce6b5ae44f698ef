"""What a tuning found: choices, every trial with its times, and the check of the whole model. As table and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from ...ir.display import Shown, Table
from .choices import Choices


@dataclass(frozen=True)
class Trial:
    """One candidate of a field.

    milliseconds: of each load, the median, composed from layers. ratio: to the choice that it was held to, the median
    over rounds. spread: between the quartiles of the ratios. outcome: kept, chosen, or why not; "" for the choice
    that lost.
    """

    field: str
    candidate: str
    milliseconds: tuple[float, ...]
    ratio: float
    spread: float
    outcome: str


@dataclass(frozen=True)
class Final:
    """The whole model, in turn: rows as Trial has them, held to the shipped choices. fell_back: tuned was not faster,
    and the shipped choices stand. note: what else is to be said."""

    rows: tuple[Trial, ...] = ()
    fell_back: bool = False
    note: str = ""


@dataclass(frozen=True, repr=False)
class Tuning(Shown):
    """Choices for one model on one machine, with their evidence.

    loads: what was timed. shipped: the choices that tuning began with. missed: fields that the budget did not reach.
    whole: layers could not be told apart, so that the model was measured as it is. cached: measured before, on the
    same machine.
    """

    choices: Choices
    shipped: Choices
    trials: tuple[Trial, ...]
    missed: tuple[str, ...]
    final: Final
    whole: bool
    loads: tuple[str, ...]
    machine: str = ""
    cached: bool = False

    @property
    def chosen(self) -> Choices:
        """The choices with this tuning as their evidence."""
        return replace(self.choices, evidence=self.why)

    @property
    def why(self) -> tuple[str, ...]:
        """What decided, in words."""
        changed = self.shipped.changed(self.choices)
        names = ", ".join(f"{k} {v}" for k, v in changed.items()) or "nothing was faster than the shipped choices"
        lines = [f"measured on {self.machine}, loads {', '.join(self.loads)}: {names}"]
        for t in self.trials:
            if t.milliseconds:
                times = ", ".join(f"{ms:.4g}" for ms in t.milliseconds)
                lines.append(
                    f"{t.field}: {t.candidate} {times} ms, {t.ratio:.3f} +- {t.spread / 2:.3f} {t.outcome}".rstrip()
                )
            else:
                lines.append(f"{t.field}: {t.candidate} {t.outcome}")
        lines += [f"whole model: {r.candidate} {', '.join(f'{ms:.4g}' for ms in r.milliseconds)} ms, {r.ratio:.3f} +- "
                  f"{r.spread / 2:.3f}" for r in self.final.rows]  # fmt: skip
        lines += [self.final.note] if self.final.note else []
        return (*lines, *self._reach())

    def _reach(self) -> list[str]:
        found = ["times are those of the whole model" if self.whole else "times are composed from layers"]
        if self.missed:
            found.append(f"not reached within the budget, as shipped: {', '.join(self.missed)}")
        return found

    def table(self) -> Table:
        """Field, candidate, ratio to what was there with its spread, milliseconds by load, outcome."""
        rows = [("field", "candidate", "ratio", "spread", f"ms {', '.join(self.loads)}", "outcome")]
        for t in (*self.trials, *self.final.rows):
            ratio, spread = (f"{t.ratio:.3f}", f"{t.spread:.3f}") if t.milliseconds else ("", "")
            times = ", ".join(f"{ms:.4g}" for ms in t.milliseconds)
            rows.append((t.field, _lines(t.candidate, 26), ratio, spread, times, _lines(t.outcome, 24)))
        said = [*filter(None, [self.final.note]), *self._reach(), *(["measured before"] if self.cached else [])]
        return Table(f"tuned on {self.machine}", rows, headed=True, note="\n  ".join(_lines(s, 94) for s in said))

    def to_json(self) -> str:
        said = {**asdict(self), "choices": self.choices.said(), "shipped": self.shipped.said()}
        return json.dumps({k: v for k, v in said.items() if k != "cached"}, indent=2) + "\n"

    @staticmethod
    def of(said: Any) -> Tuning:
        """What `to_json` wrote. Raises ValueError, KeyError, TypeError or ConfigError for anything else."""
        given = cast("dict[str, Any]", said)
        final = cast("dict[str, Any]", given["final"])
        return Tuning(
            Choices.of(given["choices"]),
            Choices.of(given["shipped"]),
            tuple(_trial(t) for t in given["trials"]),
            tuple(map(str, given["missed"])),
            Final(tuple(_trial(t) for t in final["rows"]), bool(final["fell_back"]), str(final["note"])),
            bool(given["whole"]),
            tuple(map(str, given["loads"])),
            str(given["machine"]),
            cached=True,
        )


def _lines(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width, subsequent_indent="  "))


def _trial(said: Mapping[str, Any]) -> Trial:
    times = tuple(float(ms) for ms in said["milliseconds"])
    field, candidate, outcome = (str(said[k]) for k in ("field", "candidate", "outcome"))
    return Trial(field, candidate, times, float(said["ratio"]), float(said["spread"]), outcome)
