"""Measured choice: tuned builds against shipped ones and against ONNX Runtime's own optimisation of the portable graph.

All three run in turn in one process; times are medians, ratios are to the shipped build, +- half of what lies between
their quartiles.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import monograph as mg
from monograph.assets import fetch
from monograph.backends.onnxruntime.tune import tune
from monograph.backends.onnxruntime.tune_loads import DECODE, ENCODE, Load
from monograph.backends.onnxruntime.tune_result import Trial, Tuning
from monograph.backends.target import Target
from monograph.building import weights_of
from monograph.console import working
from monograph.passes.quantize.settings import Quantization
from monograph.quantizing import quantized
from report import Row, parser, publish

CASES: tuple[tuple[str, str, str, tuple[Load, ...]], ...] = (
    ("SmolLM2-135M", "smollm2", "", DECODE),
    ("SmolLM2-135M", "smollm2", "int8", DECODE),
    ("SmolLM2-135M", "smollm2", "int4", DECODE),
    ("MiniLM", "minilm", "", ENCODE),
    ("MiniLM", "minilm", "int8-dynamic", ENCODE),
)
"""Name, asset, form of the weights, loads."""


def tuned(asset: str, form: str, loads: Sequence[Load], seconds: float, threads: int | None) -> tuple[Tuning, float]:
    """(what was measured, seconds that it took)"""
    model, target = mg.load(fetch(asset)), Target.of("cpu")
    with (
        TemporaryDirectory() as folder,
        quantized(model, Quantization.of(form or None), target, Path(folder)) as (m, _),
    ):
        start = time.perf_counter()
        settings: dict[str, Any] = {"loads": loads, "budget": seconds, "threads": threads, "again": True}
        return tune(m, weights_of(m), target, **settings), time.perf_counter() - start


def row_of(name: str, form: str, found: Tuning, seconds: float) -> Row:
    rows = {r.candidate: r for r in found.final.rows}
    shipped = rows["shipped"]
    changed = found.shipped.changed(found.choices)
    return {
        "model": name,
        "weights": form or "float32",
        "loads": ", ".join(found.loads),
        "shipped ms": ", ".join(f"{ms:,.1f}" for ms in shipped.milliseconds),
        "tuned": _ratio(rows.get("tuned")),
        "ONNX Runtime alone": _ratio(rows.get("ONNX Runtime alone")),
        "chosen otherwise": ", ".join(f"{k} {v}" for k, v in changed.items()) or "nothing",
        "seconds": round(seconds, 1),
    }


def _ratio(trial: Trial | None) -> str:
    return "as shipped" if trial is None else f"{trial.ratio:.3f} +- {trial.spread / 2:.3f}"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=60.0, help="budget of each tuning")
    options.add_argument("--threads", type=int, help="of sessions; none: one a physical core")
    options.add_argument("--only", help="a part of the name of a model, or a form of the weights")
    given = options.parse_args()
    rows: list[Row] = []
    evidence: dict[str, Any] = {}
    for name, asset, form, loads in CASES:
        if given.only and given.only.lower() not in f"{name} {form or 'float32'}".lower():
            continue
        with working(f"tuning {name} {form}"):
            found, seconds = tuned(asset, form, loads, given.seconds, given.threads)
        print(found)
        rows.append(row_of(name, form, found, seconds))
        evidence[f"{name} {form or 'float32'}"] = list(found.why)
    note = "Ratios of the time of all loads to that of the shipped build; below 1 is faster."
    publish("tune", rows, note=note, only_print=given.no_publish, evidence=evidence)


if __name__ == "__main__":
    main()
