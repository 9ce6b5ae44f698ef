"""`monograph build`: a folder that ONNX Runtime, or any ONNX runtime, serves; the memory it needs is said first."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..backends.target import Target, float_type, meant
from ..building import TARGETS, write_export
from ..building import build as build_model
from ..console import Json, command, out, print_json, progress, table
from ..frontends.dsl import Model
from ..ir import MonographError
from ..ir.display import size
from ..ir.types import f32
from ..machine import peak_memory
from ..passes.quantize.report import QuantizationReport
from ..passes.quantize.settings import Quantization
from ..quantizing import quantized
from ..resolve import resolve
from .options import FamilyOption, ModelArgument, RandomOption, targets
from .quantize_options import (
    AgainOption,
    BlockOption,
    CacheOption,
    CalibrateOption,
    MethodOption,
    PromptsOption,
    QualityOption,
    SizeOption,
    SymmetricOption,
    TablesOption,
    WeightsOption,
    adapters_of,
    quantization,
)


@command
def build(
    model: ModelArgument,
    folder: Annotated[Path, typer.Argument(help="where the built model goes")],
    target: Annotated[
        str,
        typer.Option(help=f"one of {', '.join(TARGETS)}: fused for ONNX Runtime, or portable", autocompletion=targets),
    ] = "cpu",
    weights: WeightsOption = None,
    method: MethodOption = None,
    block: BlockOption = None,
    symmetric: SymmetricOption = None,
    calibrate: CalibrateOption = None,
    quality: QualityOption = None,
    size_: SizeOption = None,
    cache: CacheOption = None,
    prompts: PromptsOption = None,
    tables: TablesOption = None,
    again: AgainOption = False,
    dtype: Annotated[
        str | None, typer.Option(help="of activations and wide weights: f32, f16, bf16; by default the target's")
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="measure here which of several legal ops is fastest")] = False,
    retune: Annotated[bool, typer.Option("--retune", help="the same, also where it was measured before")] = False,
    load: Annotated[
        list[str] | None,
        typer.Option(metavar="1x512+128", help="what to tune for: rows x tokens + new tokens; may be repeated"),
    ] = None,
    tune_seconds: Annotated[float | None, typer.Option(help="about how long tuning takes; by default 60")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="a LoRA adapter to be chosen by row; may be repeated")
    ] = None,
    max_positions: Annotated[
        int | None, typer.Option(help="most tokens a row may have (cpu); by default the config's")
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="of a portable export; by default 23, or what the client of --for reads")
    ] = None,
    layout: Annotated[
        str | None, typer.Option("--for", help="the client that opens it: optimum, genai or web (portable export)")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="fail unless every attention is fused (cpu)")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="list what was not fused, and why")] = False,
    dump: Annotated[Path | None, typer.Option(help="folder for the text of each graph after every pass")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="compare the result with the NumPy reference; exit 1 if off")
    ] = False,
    family: FamilyOption = None,
    random: RandomOption = None,
    json_output: Json = False,
) -> None:
    """Build a model: the peak-memory bound is printed before it starts, the measured peak after."""
    if target not in TARGETS:
        raise MonographError(
            f"no target is called {target!r}{meant(target, TARGETS)}", hint=f"known: {', '.join(TARGETS)}"
        )
    if layout is not None:
        target = _portable(layout, target)
    tuned = {"--load": load, "--tune-seconds": tune_seconds}
    settings = {"--strict": strict, "--tune": tune, "--retune": retune, "--adapter": adapter}
    settings |= {"--max-positions": max_positions, **tuned}
    if target == "onnx":
        _refuse(settings, "a portable export")
    else:
        _refuse({"--opset": opset}, f"a build for {target}")
    if not (tune or retune):
        _refuse(tuned, "a build without --tune")
    asked = quantization(weights, method, block, symmetric, calibrate, quality, size_, cache, prompts, tables, again)
    loaded = resolve(model, family, random)
    if layout is not None and check and loaded.task.separated:
        what = f"--check gives masks to a decoder, but one for {layout} makes its own"
        raise MonographError(what, hint="check it with --target onnx and without --for: the graphs are the same")

    def announce(bound: int) -> None:
        report["bound_bytes"] = bound
        if not json_output:
            out().print(f"{loaded.name}: at most {size(bound)} of memory (300 MB + 3 x the largest tensor)")

    report: dict[str, Any] = {"target": target, "folder": folder}
    with progress(json_output) as bars:
        bar = bars.add_task("passes", total=None)

        def show(done: int, total: int, name: str) -> None:
            bars.update(bar, description=name, completed=done, total=total)

        told = {"dump": dump, "announce": announce, "progress": show}
        start = time.perf_counter()
        if target == "onnx":
            report |= _export(loaded, folder, opset, layout, asked, dtype or "f32", told)
        else:
            chosen = {"target": target, "max_positions": max_positions, "strict": strict, "quantize": asked}
            chosen |= {
                "dtype": dtype,
                "tune": "again" if retune else tune,
                "loads": load or (),
                "tune_seconds": 60.0 if tune_seconds is None else tune_seconds,
                "adapters": adapters_of(adapter),
            }
            report |= _build(loaded, folder, chosen | told)
    report |= {"seconds": time.perf_counter() - start, "peak_bytes": peak_memory()}
    if check:
        report["check"] = _check(loaded, folder, asked, target, dtype, json_output)
    if json_output:
        print_json(report)
    else:
        _print(report, explain)
    if check and not report["check"]["passed"]:
        raise typer.Exit(1)


def _portable(layout: str, target: str) -> str:
    """The target of a folder for another client. Raises MonographError for one with ops that only we open."""
    if target == "cuda":
        raise MonographError(f"--for {layout} is a portable export, not one for cuda", hint="use --target onnx")
    return "onnx"


def _refuse(options: Mapping[str, Any], what: str) -> None:
    """Raises MonographError for an option that was given, but that nothing would read."""
    for option, given in options.items():
        if given is not None and given is not False and given != []:
            raise MonographError(f"{what} does not take {option}", hint=f"drop {option}")


def _export(
    model: Model,
    folder: Path,
    opset: int | None,
    layout: str | None,
    asked: Quantization | None,
    dtype: str,
    told: Mapping[str, Any],
) -> dict[str, Any]:
    report = write_export(model, folder, dtype, opset, layout=layout, quantize=asked, **told)
    said: dict[str, Any] = {"dtype": dtype, "precision": [line for p in report.precision for line in p.lines()]}
    said |= {"nodes": report.nodes, "misses": [], "through_float": report.through_float}
    return said | _said(report.quantization)


def _said(report: QuantizationReport | None) -> dict[str, Any]:
    """What a quantization did, where one was asked for."""
    if report is None:
        return {}
    return {"quantization": json.loads(report.to_json()), "quantization_summary": report.summary()}


def _build(model: Model, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Build, and say what came out: attentions fused, nodes by file, near misses, what is remembered."""
    with build_model(model, folder, **settings) as engine:
        report = engine.report
    assert report is not None
    return {
        "dtype": report.contract.dtype,
        "attentions": report.attentions,
        "fused": report.fused,
        "nodes": report.nodes,
        "misses": [str(m) for m in report.misses],
        "compared": report.compared,
        "through_float": report.through_float,
        "alone": report.contract.alone,
        "positions": report.contract.positions,
        "slots": [str(s) for s in report.contract.slots],
        "state_bytes": report.state_bytes,
        **_said(report.quantization),
        "choices": list(report.contract.why),
        "tuning": report.tuning,
        "precision": report.precision.lines() if report.precision is not None else [],
        "written_peak_bytes": report.written,
    }


def _check(
    model: Model, folder: Path, asked: Quantization | None, target: str, dtype: str | None, quiet: bool
) -> dict[str, Any]:
    """Parity with the model as it was built: where weights were rounded, with the numbers they stand for."""
    from ..parity import verify

    aim = None if target == "onnx" else Target.of(target, dtype)
    kept = float_type(dtype or f32) if aim is None else aim.dtype
    with progress(quiet) as bars, quantized(model, asked, aim, folder, dtype=kept) as (served, _):
        task = bars.add_task("checking", total=None)
        parity = verify(
            served, folder, torch=False, observe=lambda what: bars.update(task, description=f"checking: {what}")
        )
    return {"passed": parity.passed, "tolerance": parity.tolerance, "rows": parity.rows}


def _print(report: Mapping[str, Any], explain: bool) -> None:
    console = out()
    if "attentions" in report:
        parts = ", ".join(f"{k} {n}" for k, n in report["attentions"].items() if k != "total")
        console.print(f"{report['fused']} of {report['attentions']['total']} attentions fused ({parts or 'none'})")
    rows = [
        {"file": name, "nodes": sum(counts.values()), "ops": ", ".join(f"{k} {n}" for k, n in list(counts.items())[:6])}
        for name, counts in report["nodes"].items()
    ]
    console.print(table("graphs", rows))
    if report.get("tuning") is not None:
        console.print(report["tuning"].table().text(), markup=False)
    if "choices" in report:
        console.print(f"choices: {report['choices'][0]}", markup=False)
    for line in _notes(report, explain):
        console.print(line, markup=False)
    for miss in report["misses"] if explain else ():
        console.print(f"not fused: {miss}", markup=False)
    if explain and not report["misses"]:
        console.print("nothing that looked like a layer was left unfused")
    peak, bound = report["peak_bytes"], report["bound_bytes"]
    written = report.get("written_peak_bytes") or peak
    within = "within" if written <= bound else "ABOVE"
    if report.get("tuning") is not None and written > bound:
        within = "with the runs of tuning, which are not in"
    console.print(
        f"wrote {report['folder']} for {report['target']} in {report['dtype']}, {report['seconds']:.1f} s, "
        f"peak memory {size(written)}, {within} the bound"
        + (f"; {size(peak)} while its quality was measured" if peak > written else "")
    )
    if "check" in report:
        rows = report["check"]["rows"]
        failed = [r for r in rows if not r.passed]
        worst = max(r.difference for r in rows)
        console.print(
            f"checked {len(rows)} cases against the reference: {len(failed)} fail, largest difference {worst:.2g}"
        )


def _notes(report: Mapping[str, Any], explain: bool) -> list[str]:
    """What is remembered, what rows cost when they differ in length, and which weights left their blocks."""
    lines: list[str] = []
    if report.get("slots"):
        most = f" at {report['positions']} tokens" if report["positions"] else ""
        kept = size(report["state_bytes"])
        lines.append(f"remembers {len(report['slots'])} slots, {kept} a row{most}")
    if report.get("precision"):
        first, *rest = report["precision"]
        lines += [first, *(f"  {line}" for line in (rest if explain else rest[:4]))]
    if explain and report.get("compared"):
        lines.append(f"compared: {report['compared']}")
    if report.get("alone"):
        lines.append(f"with a mask, rows of different lengths run one by one: {report['alone']}")
    if "quantization" in report:
        lines.append(report["quantization_summary"])
        lines += _departures(report["quantization"]["weights"], explain)
    if lost := report["through_float"]:
        lines.append(
            f"{len(lost)} weights went through float instead of their blocks ({', '.join(sorted({*lost.values()}))})"
        )
        lines += [f"  {name}: {kind}" for name, kind in lost.items()] if explain else []
    return lines


def _departures(weights: Sequence[Mapping[str, Any]], explain: bool) -> list[str]:
    """Weights for which a plan departs from what was asked: by reason, or each by name."""
    noted = [w for w in weights if w["why"] and (w["encoding"] or explain or not w["why"].endswith("no matrix"))]
    if explain:
        return [f"  {w['name']}: {w['encoding'] or 'wide'}, {w['why']}" for w in noted]
    kinds = Counter((w["encoding"] or "wide", w["why"]) for w in noted)
    return [f"  {n} {kind}: {why}" for (kind, why), n in kinds.items()]
