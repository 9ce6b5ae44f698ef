"""`monograph build`: a folder that ONNX Runtime, or any ONNX runtime, serves; the memory it needs is said first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..building import TARGETS, export, memory_bound, serving_graphs, weights_of
from ..console import Json, command, human_bytes, out, print_json, progress, table
from ..frontends.dsl import Model
from ..ir import MonographError
from ..ir.errors import did_you_mean
from ..machine import peak_memory, seconds
from ..passes.encode import through_float
from ..passes.pipelines import PIPELINES
from ..resolve import HELP, resolve


@command
def build(
    model: Annotated[str, typer.Argument(help=HELP)],
    folder: Annotated[Path, typer.Argument(help="where the built model goes")],
    target: Annotated[
        str, typer.Option(help=f"one of {', '.join(TARGETS)}: fused for ONNX Runtime, or portable")
    ] = "cpu",
    max_positions: Annotated[
        int | None, typer.Option(help="most tokens a row may have (cpu); none: the config's")
    ] = None,
    opset: Annotated[int, typer.Option(help="of a portable export")] = 23,
    strict: Annotated[bool, typer.Option("--strict", help="fail unless every attention is fused (cpu)")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="list what was not fused, and why")] = False,
    dump: Annotated[Path | None, typer.Option(help="folder for the text of the graph after every pass")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="compare the result with the NumPy reference; exit 1 if off")
    ] = False,
    json_output: Json = False,
) -> None:
    """Build a model: the peak-memory bound is printed before it starts, the measured peak after."""
    if target not in TARGETS:
        raise MonographError(f"no target is called {target!r}{did_you_mean(target, TARGETS)}")
    loaded = resolve(model)
    bound = memory_bound(loaded)
    if not json_output:
        out().print(f"{loaded.name}: at most {human_bytes(bound)} of memory (300 MB + 3 x the largest tensor)")
    if dump is not None:
        _dump(loaded, target, dump, max_positions)
    with progress(json_output) as bars:
        bar = bars.add_task("passes", total=None)

        def show(done: int, total: int, name: str) -> None:
            bars.update(bar, description=name, completed=done, total=total)

        report: dict[str, Any] = {}
        spent = seconds(lambda: report.update(_write(loaded, folder, target, max_positions, opset, strict, show)))
    report |= {"folder": folder, "seconds": spent, "bound_bytes": bound, "peak_bytes": peak_memory()}
    if check:
        report["check"] = _check(loaded, folder, json_output)
    if json_output:
        print_json(report)
    else:
        _print(report, explain)
    if check and not report["check"]["passed"]:
        raise typer.Exit(1)


def _write(
    model: Model, folder: Path, target: str, positions: int | None, opset: int, strict: bool, show: Any
) -> dict[str, Any]:
    """Build, and say what came out: attentions fused, nodes by file, near misses."""
    if target == "onnx":
        if strict:
            raise MonographError("a portable export has no fused ops to be strict about", hint="drop --strict")
        export(model, folder, opset=opset, progress=show)
        plain = through_float(model.graph(encoded=True), weights_of(model))
        return {"target": target, "nodes": _nodes(folder), "through_float": plain, "misses": []}
    from ..backends import onnxruntime as backend

    report = backend.build(model, None, folder, target, max_positions=positions, strict=strict, progress=show)
    misses = [str(m) for m in report.misses]
    return {
        "target": target,
        "attentions": report.attentions,
        "fused": report.fused,
        "nodes": report.nodes,
        "through_float": report.through_float,
        "misses": misses,
    }


def _nodes(folder: Path) -> dict[str, dict[str, int]]:
    """Nodes by op type of every ONNX file in the folder; weights are not read."""
    import onnx

    found: dict[str, dict[str, int]] = {}
    for path in sorted(folder.glob("*.onnx")):
        counts: dict[str, int] = {}
        for node in onnx.load(str(path), load_external_data=False).graph.node:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
        found[path.name] = dict(sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))
    return found


def _dump(model: Model, target: str, folder: Path, positions: int | None) -> None:
    """The graph after every pass, and the graphs that are lowered."""
    name = "decode" if model.task.generates else "encode"
    PIPELINES[name].run(model.graph(), dump=folder)
    graphs: Mapping[str, Any] = serving_graphs(model)
    if target != "onnx":
        from ..backends import onnxruntime as backend

        graphs = backend.variants_of(model.graph(), positions or backend.positions_of(model)).graphs
    for file, graph in graphs.items():
        (folder / f"final-{file}.txt").write_text(str(graph))


def _check(model: Model, folder: Path, quiet: bool) -> dict[str, Any]:
    from ..parity import verify

    with progress(quiet) as bars:
        task = bars.add_task("checking", total=None)
        parity = verify(
            model, folder, torch=False, observe=lambda what: bars.update(task, description=f"checking: {what}")
        )
    return {"passed": parity.passed, "tolerance": parity.tolerance, "rows": parity.rows}


def _print_formats(plain: Mapping[str, str], explain: bool) -> None:
    """Which weights the target could not keep in the blocks of their file."""
    kinds = list(plain.values())
    if kinds:
        counts = ", ".join(f"{kind} {kinds.count(kind)}" for kind in sorted(set(kinds)))
        out().print(f"{len(kinds)} weights are stored as plain numbers, not in the blocks of their file ({counts})")
    for name, kind in plain.items() if explain else ():
        out().print(f"plain numbers: {name} ({kind})", markup=False)


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
    _print_formats(report["through_float"], explain)
    for miss in report["misses"] if explain else ():
        console.print(f"not fused: {miss}", markup=False)
    if explain and not report["misses"]:
        console.print("nothing that looked like a layer was left unfused")
    peak, bound = report["peak_bytes"], report["bound_bytes"]
    within = "within" if peak <= bound else "ABOVE"
    console.print(
        f"wrote {report['folder']} in {report['seconds']:.1f} s, peak memory {human_bytes(peak)}, {within} the bound"
    )
    if "check" in report:
        rows = report["check"]["rows"]
        failed = [r for r in rows if not r.passed]
        worst = max(r.difference for r in rows)
        console.print(
            f"checked {len(rows)} cases against the reference: {len(failed)} fail, largest difference {worst:.2g}"
        )
