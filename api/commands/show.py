"""`monograph show`, `explain` and `optimize`: the graph of a model, before and after passes, and what was not fused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..console import Json, command, err, out, print_json, table, working
from ..frontends.dsl import Model
from ..ir import Graph, MonographError
from ..ir.errors import did_you_mean
from ..passes.differential import difference
from ..passes.manager import PipelineReport
from ..passes.pattern import NearMiss
from ..passes.pipelines import PIPELINES, decompose, optimize
from ..passes.shard import plan
from ..pictures import draw, write_page
from ..resolve import resolve
from .options import FamilyOption, ModelArgument, RandomOption, pipelines

_PIPELINES = f"one of {', '.join(sorted(PIPELINES))}"
PipelineOption = Annotated[str | None, typer.Option(help=_PIPELINES, autocompletion=pipelines)]
Decompose = Annotated[bool, typer.Option("--decompose", help="take every layer apart before the passes run")]


@command
def show(
    model: ModelArgument,
    pipeline: Annotated[
        str | None, typer.Option(help=f"{_PIPELINES}; by default none of them", autocompletion=pipelines)
    ] = None,
    decomposed: Decompose = False,
    counts: Annotated[bool, typer.Option("--counts", help="print how often each op occurs, not the graph")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="print what was not fused, and why")] = False,
    notes: Annotated[
        bool, typer.Option("--notes", help="print what its files say that changes nothing here, and why")
    ] = False,
    shard: Annotated[int | None, typer.Option(help="print how this many processes share the layers")] = None,
    family: FamilyOption = None,
    random: RandomOption = None,
    svg: Annotated[Path | None, typer.Option(help="file for a drawing of the architecture, as SVG")] = None,
    png: Annotated[Path | None, typer.Option(help="file for the same drawing, as PNG")] = None,
    html: Annotated[
        Path | None, typer.Option(help="file for a page with the graph before and after every pass (default: decode)")
    ] = None,
    json_output: Json = False,
) -> None:
    """Print the graph of a model as text, plain or after a named pipeline; or draw it."""
    if shard is not None:
        _show_plan(model, shard, json_output, family)
        return
    if svg or png or html:
        made = resolve(model, family, random)
        _draw(made, {".svg": svg, ".png": png}, html, pipeline or "decode", decomposed, json_output)
        return
    made = resolve(model, family, random)
    graph, report = _graph(made, pipeline, decomposed)
    payload: dict[str, Any] = {"name": graph.name, "pipeline": pipeline, "nodes": len(graph), "counts": graph.counts()}
    if graph.slots:
        payload["slots"] = [str(s) for s in graph.slots]
    if report is not None:
        payload |= {"fused": report.counts, "misses": [_miss(m) for m in report.misses]}
    if notes:
        payload["notes"] = [str(note) for note in made.notes]
    if json_output:
        print_json(payload if counts or notes else {**payload, "text": str(graph)})
        return
    if made.notes and not notes:
        said = "entry changes" if len(made.notes) == 1 else "entries change"
        err().print(f"{len(made.notes)} {said} nothing here: --notes says which, and why", style="dim", markup=False)
    if notes:
        for note in made.notes:
            out().print(str(note), markup=False)
        if not made.notes:
            out().print("there is nothing to note: every entry of its files is used", markup=False)
    elif counts:
        out().print(table(f"{graph.name}: {len(graph)} nodes", _count_rows(graph)))
        for slot in graph.slots:
            out().print(str(slot), markup=False)
    elif not explain:
        out().print(str(graph), markup=False, end="")
    if explain:
        _print_misses(report, pipeline)


def _draw(
    model: Model, drawings: dict[str, Path | None], html: Path | None, pipeline: str, decomposed: bool, json: bool
) -> None:
    """Write the drawings and the page that were asked for, and say where."""
    written = dict[str, str]()
    for ending, path in drawings.items():
        if path is None:
            continue
        if path.suffix.lower() != ending:
            raise MonographError(f"--{ending[1:]} writes a file that ends in {ending}, not {path.name}")
        written[ending[1:]] = str(draw(model).save(path))
    if html is not None:
        _known(pipeline)
        with working(f"passes of {pipeline}", json):
            written["html"] = str(write_page(model, html, pipeline, decomposed=decomposed))
    if json:
        print_json(written)
        return
    for path in written.values():
        out().print(path, markup=False)


def _known(pipeline: str) -> None:
    if pipeline not in PIPELINES:
        what = f"no pipeline is called {pipeline!r}{did_you_mean(pipeline, PIPELINES)}"
        raise MonographError(what, hint=f"known: {', '.join(PIPELINES)}")


def _show_plan(model: str, size: int, json_output: bool, family: str | None) -> None:
    if size < 2:
        raise MonographError(f"--shard is {size}, expected at least 2 processes")
    found = plan(resolve(model, family).graph(), size)
    if json_output:
        print_json({"name": found.graph.name, "size": size, "plan": found.rows()})
    else:
        out().print(table(f"{found.graph.name} over {size} processes", found.rows()))


@command
def explain(
    model: ModelArgument,
    pipeline: PipelineOption = "decode",
    decomposed: Decompose = False,
    family: FamilyOption = None,
    json_output: Json = False,
) -> None:
    """List what the passes fused and, with layer, line and reason, what they almost fused but did not."""
    graph, report = _graph(resolve(model, family), pipeline or "decode", decomposed)
    if json_output:
        fused = {} if report is None else report.counts
        print_json({"name": graph.name, "fused": fused, "misses": [_miss(m) for m in report.misses] if report else []})
        return
    _print_misses(report, pipeline or "decode")


@command
def optimize_(
    model: ModelArgument,
    pipeline: Annotated[
        str, typer.Option(help=f"one of {', '.join(sorted(PIPELINES))}", autocompletion=pipelines)
    ] = "decode",
    decomposed: Decompose = False,
    check: Annotated[
        bool, typer.Option("--check", help="compare numbers across every pass with the reference")
    ] = False,
    dump: Annotated[Path | None, typer.Option(help="folder for the graph after every pass")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="file for the final graph")] = None,
    family: FamilyOption = None,
    json_output: Json = False,
) -> None:
    """Run a pipeline and print what every pass did: seconds, nodes, rewrites."""
    graph, report = _graph(resolve(model, family), pipeline, decomposed, check=check, dump=dump, quiet=json_output)
    assert report is not None
    if output is not None:
        output.write_text(str(graph))
    if json_output:
        print_json({"name": graph.name, "pipeline": pipeline, "seconds": report.seconds, "steps": report.steps})
        return
    rows = [{"pass": s.name, "ms": 1e3 * s.seconds, "before": s.before, "after": s.after} for s in report.steps]
    done = [", ".join(f"{k} {n}" for k, n in s.counts.items() if n) or "-" for s in report.steps]
    out().print(table(f"{graph.name}: {pipeline}", [{**r, "did": d} for r, d in zip(rows, done, strict=True)]))
    if check:
        out().print("no pass changed what the graph computes")


def _graph(
    model: Model,
    pipeline: str | None,
    decomposed: bool,
    *,
    check: bool = False,
    dump: Path | None = None,
    quiet: bool = True,
) -> tuple[Graph, PipelineReport | None]:
    """The graph of the model, taken apart and optimized as asked, and the report of the passes."""
    if pipeline is not None:
        _known(pipeline)
    graph = model.graph(encoded=True)
    if decomposed:
        graph = decompose(graph)
    if pipeline is None:
        return graph, None
    with working(f"passes of {pipeline}", quiet):
        return optimize(graph, pipeline, dump=dump, check=difference if check else None)


def _count_rows(graph: Graph) -> list[dict[str, Any]]:
    return [{"op": name, "nodes": n} for name, n in graph.counts().items()]


def _miss(miss: NearMiss) -> dict[str, Any]:
    place = miss.location
    return {
        "rewrite": miss.rewrite,
        "layer": place.scope,
        "file": place.file,
        "line": place.line,
        "reason": miss.reason,
        "matched": miss.matched,
        "size": miss.size,
    }


def _print_misses(report: PipelineReport | None, pipeline: str | None) -> None:
    if report is None:
        raise MonographError("nothing was fused: no pipeline ran", hint="say --pipeline decode")
    fused = ", ".join(f"{name} {n}" for name, n in report.counts.items() if n and name.startswith("fuse_"))
    out().print(f"{pipeline} fused: {fused or 'nothing'}", markup=False)
    if not report.misses:
        out().print("nothing that looked like a layer was left unfused")
    for miss in report.misses:
        out().print(f"not fused: {miss}", markup=False)
