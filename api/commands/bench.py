"""`monograph bench`: models side by side, in tokens per second and as a share of what this machine can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..console import Json, command, out, print_json, progress, table
from ..ir.files import write_file
from ..performance import Benchmark, share
from ..performance import bench as measure
from ..performance_pages import check_drawing, limits, png, rows
from ..performance_pages import page as page_of
from ..profiling import Layer
from ..resolve import HELP, resolve
from ..subjects import is_runnable
from .options import FamilyOption, RandomOption, models

_LAYERS = 12


@command
def bench(
    model: Annotated[
        str, typer.Argument(help=f"a built folder, an ONNX file, or a model: {HELP}", autocompletion=models)
    ],
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="what it is compared with: a built folder or an ONNX file; or eager or compiled, which run the model "
            "itself in PyTorch; may be repeated"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="prompts that run together")] = 1,
    prompt: Annotated[int | None, typer.Option(help="tokens of each prompt; by default 128, or what fits")] = None,
    new_tokens: Annotated[
        int | None, typer.Option("--new-tokens", "--new", help="tokens decoded after it; by default 32, or what fits")
    ] = None,
    rounds: Annotated[int, typer.Option(help="measurements of each, in turn; the median counts")] = 5,
    threads: Annotated[int | None, typer.Option(help="by default all cores")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="also print where the time of each goes, by layer and op")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="write a PNG with bars and a roofline (extra plot)")] = None,
    page: Annotated[
        Path | None, typer.Option("--html", help="write one page with table, picture and profile (extra plot)")
    ] = None,
    family: FamilyOption = None,
    random: RandomOption = None,
    json_output: Json = False,
) -> None:
    """Measure tokens per second of a model, a built folder or an ONNX file, beside others.

    Without --against, a model is compared with its own graph before the passes and in standard ops.
    """
    subject = (
        model if family is None and random is None and is_runnable(Path(model)) else resolve(model, family, random)
    )
    if drawn := [file for file in (plot, page) if file is not None]:
        check_drawing(*drawn)
    name = Path(model).name
    with progress(json_output) as bars:
        bar = bars.add_task("", total=None)
        found = measure(
            subject,
            against=against or (),
            batch=batch,
            prompt=prompt,
            new_tokens=new_tokens,
            rounds=rounds,
            threads=threads,
            profile=profile or page is not None,
            observe=lambda what: bars.update(bar, description=what),
        )
    if plot is not None:
        write_file(plot, png(found))
    if page is not None:
        write_file(page, page_of(found, name).encode())
    if json_output:
        print_json(found)
    else:
        print_benchmark(name, found, profile=profile)


def print_benchmark(name: str, found: Benchmark, *, profile: bool = False) -> None:
    out().print(table(f"{name} on this machine", rows(found)))
    out().print(limits(found))
    for warning in found.warnings:
        out().print(warning, markup=False)
    for row in found.rows if profile else ():
        if row.layers:
            out().print(table(f"{row.variant}: where the time goes", [_layer(x) for x in row.layers[:_LAYERS]]))


def _layer(layer: Layer) -> dict[str, Any]:
    return {"layer": layer.scope or "none", "op": layer.op, "calls": layer.count, "ms": layer.milliseconds,
            "share": share(layer.share)}  # fmt: skip
