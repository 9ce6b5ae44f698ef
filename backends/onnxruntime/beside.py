"""What goes into a build beside a model, its weights and the target: one value, handed on as it is."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...passes.adapters import Adapters
from ...passes.quantize.report import QuantizationReport

if TYPE_CHECKING:
    from .build import BuildReport


@dataclass(frozen=True)
class Beside:
    """What a build takes beside the model.

    adapters: stored beside the base and chosen by row, with the input `adapter`. fine: weights whose activations lose
    too much in 8 bits: kernels which round them get two parts. quantization: what was done to the weights, for the
    report and the folder. cache: what keys and values in 8 bits cost. evidence: the measurements behind the choices, as
    JSON for the folder. dump: folder for the text of each graph after every pass. finish(report): called when the
    folder of the report is complete, but not in its place yet; what it writes there belongs to the build.
    """

    adapters: Adapters | None = None
    fine: Collection[str] = ()
    quantization: QuantizationReport | None = None
    cache: str = ""
    evidence: str = ""
    dump: Path | None = None
    finish: Callable[[BuildReport], None] | None = None


PLAIN = Beside()
"""Nothing but the model."""
