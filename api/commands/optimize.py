"""`monograph optimize`: an ONNX file fused and held against itself; or the passes of a model, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..console import Json, command, out, print_json, table, working
from ..ir import MonographError
from ..ir.files import write_file
from ..onnx_path import is_onnx
from ..passes.pipelines import PIPELINES
from ..resolve import resolve
from .options import FamilyOption, ModelArgument, pipelines
from .show import Decompose, graph_after

if TYPE_CHECKING:
    from ..optimizing import OptimizeReport


@command
def optimize_(
    model: ModelArgument,
    pipeline: Annotated[
        str | None,
        typer.Option(help=f"one of {', '.join(sorted(PIPELINES))} (default: decode)", autocompletion=pipelines),
    ] = None,
    decomposed: Decompose = False,
    check: Annotated[
        bool, typer.Option("--check", help="compare numbers across every pass with the reference")
    ] = False,
    dump: Annotated[Path | None, typer.Option(help="folder for the graph after every pass")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="folder for a fused ONNX file; else file for the final graph")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="of an ONNX file: fail unless everything is fused")] = False,
    cache: Annotated[
        bool,
        typer.Option("--cache", help="of an ONNX decoder: a folder with prefill, steps and a cache, to generate with"),
    ] = False,
    family: FamilyOption = None,
    json_output: Json = False,
) -> None:
    """Fuse an ONNX file into the folder OUTPUT, checked in ONNX Runtime; or print what each pass does to a model."""
    if is_onnx(Path(model)) and output is not None:
        others = {"--pipeline": pipeline, "--decompose": decomposed, "--check": check, "--dump": dump}
        if given := [name for name, value in others.items() if value]:
            raise MonographError(f"{', '.join(given)} and an ONNX file with -o do not go together")
        from ..optimizing import optimize

        with working("optimizing", json_output):
            report = optimize(model, output, strict=strict, cache=cache)
        _print(report, json_output)
        return
    if cache:
        raise MonographError("--cache needs an ONNX file and a folder for what is built of it", hint="-o FOLDER")
    if strict:
        raise MonographError("--strict needs an ONNX file and a folder for the fused one", hint="-o FOLDER")
    name = pipeline or "decode"
    graph, report_of_passes = graph_after(
        resolve(model, family), name, decomposed, check=check, dump=dump, quiet=json_output
    )
    assert report_of_passes is not None
    steps = report_of_passes.steps
    if output is not None:
        write_file(output, str(graph).encode())
    if json_output:
        print_json({"name": graph.name, "pipeline": name, "seconds": report_of_passes.seconds, "steps": steps})
        return
    rows = [{"pass": s.name, "ms": 1e3 * s.seconds, "before": s.before, "after": s.after} for s in steps]
    done = [", ".join(f"{k} {n}" for k, n in s.counts.items() if n) or "-" for s in steps]
    out().print(table(f"{graph.name}: {name}", [{**r, "did": d} for r, d in zip(rows, done, strict=True)]))
    if check:
        out().print("no pass changed what the graph computes")


def _print(report: OptimizeReport, json_output: bool) -> None:
    if json_output:
        print_json(report.as_json())
        return
    raised = ", ".join(f"{n} {op}" for op, n in report.layers.items()) or "nothing"
    out().print(f"raised: {raised}", markup=False)
    for line in report.refusals:
        out().print(line, markup=False)
    for trial, why in report.refused.items():
        out().print(f"not compared: {trial}: {why}", markup=False)
    out().print(f"{report.nodes[0]} nodes before, {report.nodes[1]} after", markup=False)
    same = f"equal on {report.trials} sets of inputs (error {report.error:.1e}, at most {report.bound:.1e})"
    out().print(f"wrote {report.folder}: {same if report.trials else 'nothing was compared'}", markup=False)
