"""`monograph explain`: what was raised and fused, by layer, and what was not, with the first obstacle."""

from __future__ import annotations

import html as escaped
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..console import Json, command, out, print_json, table, working
from ..ir.files import write_file
from ..onnx_path import is_onnx
from ..page_of_tables import plain_page, table_of
from ..resolve import resolve
from .options import FamilyOption, ModelArgument
from .show import Decompose, PipelineOption, graph_after, miss_json, print_misses

if TYPE_CHECKING:
    from ..explaining import Explanation


@command
def explain(
    model: ModelArgument,
    pipeline: PipelineOption = "decode",
    decomposed: Decompose = False,
    family: FamilyOption = None,
    html: Annotated[Path | None, typer.Option("--html", help="file for one self-contained page of the same")] = None,
    json_output: Json = False,
) -> None:
    """List what was fused and, with layer, place and reason, what was not; of an ONNX file, what was raised, too."""
    if is_onnx(Path(model)):
        from ..explaining import explanation_page

        with working("raising", json_output):
            found = _files(Path(model))
        if html is not None:
            write_file(html, explanation_page(found).encode())
        if json_output:
            print_json([one.as_json() for one in found] if len(found) > 1 else found[0].as_json())
            return
        for one in found:
            _print(one)
        return
    graph, report = graph_after(resolve(model, family), pipeline or "decode", decomposed)
    misses = [miss_json(m) for m in report.misses] if report else []
    fused = {} if report is None else report.counts
    if html is not None:
        rows = [[str(m["layer"]), str(m["rewrite"]), f"{m['file']}:{m['line']}", str(m["reason"])] for m in misses]
        counts = [[name, str(n)] for name, n in fused.items() if n]
        tables = [table_of(["pass", "fused"], counts), table_of(["layer", "rewrite", "place", "reason"], rows, "text")]
        page = plain_page(graph.name, [f"<h1>{escaped.escape(graph.name)}</h1>", *tables])
        write_file(html, page.encode())
    if json_output:
        print_json({"name": graph.name, "fused": fused, "misses": misses})
        return
    print_misses(report, pipeline or "decode")


def _files(path: Path) -> list[Explanation]:
    """Of a file, or of every ONNX file of a folder."""
    from ..explaining import explain

    return [explain(p) for p in (sorted(path.glob("*.onnx")) if path.is_dir() else [path])]


def _print(found: Explanation) -> None:
    out().print(table(found.name, found.rows))
    for name, why in found.foreign.items():
        out().print(f"kept as it is: {name}: {why}", markup=False)
    for miss in found.misses:
        out().print(f"not fused: {miss}", markup=False)
    out().print(found.summary, markup=False)
