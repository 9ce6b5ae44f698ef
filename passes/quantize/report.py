"""What a quantization did to each weight: for the report of a build, for the folder, and for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...ir.display import Shown, Table, size
from ...ir.encoded import Encoded
from ...ir.tensors import Tensor
from .choose import Planned
from .plan import Rounded
from .settings import Quantization

FILE = "quantization.json"
"""The report in a folder."""
QUALITY = "quality.json"
"""What was measured on text, in a folder that was built with one."""


@dataclass(frozen=True)
class Layer:
    """One weight. encoding: as it is stored ("": wide). why: where it departs from what was asked. before, after:
    bytes, without and with the quantization. error: relative (None: not rounded)."""

    name: str
    encoding: str
    method: str
    why: str
    before: int
    after: int
    error: float | None


@dataclass(repr=False)
class QuantizationReport(Shown):
    """What was asked, and what became of each weight. quality: what was measured on text, if it was. fine: those
    that are multiplied by activations in full, since 8 bits would change their outputs too much."""

    asked: Quantization
    layers: list[Layer] = field(default_factory=list[Layer])
    quality: Mapping[str, Any] = field(default_factory=dict[str, Any])
    fine: frozenset[str] = frozenset()

    @staticmethod
    def of(
        asked: Quantization, weights: Mapping[str, Tensor], planned: Planned, done: list[Rounded], bits: int
    ) -> QuantizationReport:
        """bits: of a number that stays wide."""
        report = QuantizationReport(asked)
        for r in done:
            choice, before = planned.choices[r.name], _wide(weights[r.name], bits)
            after = r.tensor.lines.bytes
            report.layers.append(
                Layer(r.name, str(choice.encoding), choice.method.name, choice.why, before, after, r.error)
            )
        for name, why in planned.wide.items():
            if name in weights:
                before, tensor = _wide(weights[name], bits), weights[name]
                kept = isinstance(tensor, Encoded)
                stored = str(tensor.encoding) if kept else ""
                after = tensor.lines.bytes if kept else before
                report.layers.append(Layer(name, stored, "", why, before, after, None))
        return report

    @property
    def before(self) -> int:
        """Bytes of the weights as plain numbers of the build."""
        return sum(layer.before for layer in self.layers)

    @property
    def after(self) -> int:
        """Bytes of the weights as they are stored."""
        return sum(layer.after for layer in self.layers)

    @property
    def wide(self) -> list[Layer]:
        """Matrices that stay plain numbers."""
        return [layer for layer in self.layers if not layer.encoding]

    @property
    def error(self) -> float:
        """Mean relative error of the weights that were rounded."""
        errors = [layer.error for layer in self.layers if layer.error is not None]
        return sum(errors) / len(errors) if errors else 0.0

    @property
    def methods(self) -> list[str]:
        """Who rounded."""
        return list(dict.fromkeys(layer.method for layer in self.layers if layer.method))

    @property
    def encodings(self) -> dict[str, int]:
        """How many weights are stored in each encoding."""
        return dict(Counter(layer.encoding for layer in self.layers if layer.encoding))

    def summary(self) -> str:
        """One line for people."""
        kinds = ", ".join(f"{n} {name}" for name, n in self.encodings.items()) or "none"
        by = f" by {' and '.join(self.methods)}" if self.methods else ", kept as they were"
        line = f"{kinds}{by}, {size(self.before)} to {size(self.after)}, mean relative error {self.error:.2%}"
        return "; ".join([line, *self._measured()])

    def _measured(self) -> list[str]:
        """What was measured on text, as far as it was."""
        q, found = self.quality, list[str]()
        if "not_measured" in q:
            return [f"quality was not measured: {q['not_measured']}"]
        if "rise" in q:
            found.append(f"perplexity {q['before']:.4g} to {q['perplexity']:.4g} ({q['rise']:+.2%})")
        if "agreement" in q:
            found.append(f"likeliest token equal {q['agreement']:.1%}")
        if "greedy" in q:
            found.append(f"greedy tokens equal {q['greedy']:.1%}")
        if "error" in q:
            found.append(f"output off by {q['error']:.2%}")
        if found:
            found[-1] += f", on {q['tokens']:,} tokens of {q['text']}"
        return found

    def table(self) -> Table:
        """For `repr` and notebooks."""
        worst = sorted((x for x in self.layers if x.error), key=lambda x: -(x.error or 0))[:3]
        reasons = Counter(layer.why for layer in self.wide)
        rows = [
            ("weights", ", ".join(f"{n} {name}" for name, n in self.encodings.items()) or "none"),
            ("method", ", ".join(self.methods) or "none"),
            ("size", f"{size(self.before)} to {size(self.after)}"),
            ("mean error", f"{self.error:.2%}"),
            ("largest", "\n".join(f"{x.name} {x.error:.2%}" for x in worst) or "none"),
            ("kept wide", "\n".join(f"{n} {why}" for why, n in reasons.items()) or "none"),
            ("activations in full", f"{len(self.fine)} layers" if self.fine else "none"),
            *((k, str(v)) for k, v in self.quality.items()),
        ]
        return Table("quantization", rows)

    def to_json(self) -> str:
        """For the folder."""
        asked = {k: v for k, v in asdict(self.asked).items() if k != "calibrate"}
        said = {
            "asked": asked,
            "bytes_before": self.before,
            "bytes_after": self.after,
            "mean_relative_error": self.error,
            "quality": dict(self.quality),
            "activations_in_full": sorted(self.fine),
            "weights": [asdict(layer) for layer in self.layers],
        }
        return json.dumps(said, indent=1) + "\n"


def _wide(tensor: Tensor, bits: int) -> int:
    """Bytes of a tensor as plain numbers."""
    return tensor.bytes * bits // tensor.dtype.bits
