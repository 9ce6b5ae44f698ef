"""What a quantization costs on the text that was given, measured before a folder is in its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .frontends.dsl import Model
from .ir.errors import ConfigError, RuntimeInputError
from .machine import peak_memory
from .passes.quantize.report import QUALITY, QuantizationReport
from .passes.quantize.settings import Quantization

if TYPE_CHECKING:
    from .backends.onnxruntime.build import BuildReport
    from .fidelity import Quality


def after_build(
    model: Model, asked: Quantization | None, provider: str, done: QuantizationReport | None
) -> Callable[[BuildReport], None] | None:
    """What measures a build on the text that was given: None where none was, or its provider is not to be had here."""
    text = None if asked is None or not asked.weights or provider != "cpu" else asked.calibrate
    if text is None:
        return None

    def measure(report: BuildReport) -> None:
        from .fidelity import quality
        from .inference.engine import Engine

        report.written = peak_memory()
        with Engine.built(report) as engine:
            _note(quality(engine, text, against=model), report.folder, asked, done)

    return measure


def after_export(
    model: Model, asked: Quantization | None, done: QuantizationReport | None
) -> Callable[[Path], None] | None:
    """The same for a portable folder. One that cannot run here is written all the same, and the report says why."""
    text = None if asked is None else asked.calibrate
    if text is None:
        return None

    def measure(folder: Path) -> None:
        from .fidelity import quality

        try:
            _note(quality(folder, text, against=model), folder, asked, done)
        except RuntimeInputError as e:
            if done is not None:
                done.quality = {"not_measured": e.what}

    return measure


def _note(found: Quality, folder: Path, asked: Quantization | None, done: QuantizationReport | None) -> None:
    """Write what was found into a folder and the report of its quantization.

    Raises ConfigError where all that was asked for together costs more than was asked.
    """
    most = None if asked is None else asked.quality
    if most is not None and found.rise is not None and found.rise > most:
        what = f"quality is {most:.2%}, but perplexity of what was built rises by {found.rise:.2%}"
        raise ConfigError(what, place="quantize", hint="ask for less at once, or for a rise that is smaller by as much")
    text = found.to_json()
    (folder / QUALITY).write_text(text, encoding="utf-8")
    if done is not None:
        done.quality = {k: v for k, v in json.loads(text).items() if v is not None}
