"""`monograph bench`: models side by side, in tokens per second and as a share of what this machine can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..console import Json, command, out, print_json, progress, table
from ..ir.display import size
from ..performance import Benchmark, Speed, share
from ..performance import bench as measure
from ..profiling import Layer
from ..resolve import resolve
from ..subjects import is_runnable
from .options import FamilyOption, ModelArgument, RandomOption

_LAYERS = 12


@command
def bench(
    model: ModelArgument,
    against: Annotated[
        list[str] | None,
        typer.Option(help="what it is compared with: a built folder, an ONNX file, eager, compiled; again for more"),
    ] = None,
    batch: Annotated[int, typer.Option(help="rows that run together")] = 1,
    prompt: Annotated[int | None, typer.Option(help="tokens of the prompt; none: 128, or what fits")] = None,
    new_tokens: Annotated[
        int | None, typer.Option("--new-tokens", "--new", help="tokens generated after it; none: 32, or what fits")
    ] = None,
    rounds: Annotated[int, typer.Option(help="of which the median counts; subjects take turns")] = 5,
    threads: Annotated[int | None, typer.Option(help="none: all cores")] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="also where the time of each goes, by layer and op")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="PNG with bars and a roofline")] = None,
    page: Annotated[Path | None, typer.Option("--html", help="one self-contained page")] = None,
    family: FamilyOption = None,
    random: RandomOption = None,
    json_output: Json = False,
) -> None:
    """Measure a model on ONNX Runtime, or a built folder or ONNX file, beside what it is compared with."""
    subject = (
        model if family is None and random is None and is_runnable(Path(model)) else resolve(model, family, random)
    )
    name = Path(subject).name if isinstance(subject, str) else subject.name
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
    if plot is not None or page is not None:
        from ..performance_pages import page as page_of
        from ..performance_pages import png, write

        if plot is not None:
            write(png(found), plot)
        if page is not None:
            write(page_of(found, name).encode(), page)
    if json_output:
        print_json(found)
    else:
        print_benchmark(name, found, profile=profile)


def rows(found: Benchmark) -> list[dict[str, Any]]:
    """The table for people: tokens per second with their spread, shares of the limits, and times the first row."""
    first = found.rows[0]
    return [
        {
            "graph": r.variant,
            "nodes": r.nodes,
            f"{'prefill' if found.new_tokens else 'one call'} ({found.unit}/s)": _spread(r.prefill, r.prefill_spread),
            "of fp32 limit": share(r.prefill_share),
            **_decode(found, r),
            "times": r.decode / first.decode if found.new_tokens else r.prefill / first.prefill,
            "memory": size(r.peak),
        }
        for r in found.rows
    ]


def _spread(value: float, spread: float) -> str:
    return f"{value:,.1f} ±{spread:.0%}"


def _decode(found: Benchmark, row: Speed) -> dict[str, Any]:
    if not found.new_tokens:
        return {}
    return {"decode (tokens/s)": _spread(row.decode, row.decode_spread), "of bandwidth": share(row.decode_share)}


def limits(found: Benchmark) -> str:
    """One sentence about the conditions."""
    c = found.ceilings
    said = f"{found.prompt} {found.unit}" if found.unit == "tokens" else "one row"
    said = f"{found.prompt} prompt tokens, {found.new_tokens} new ones" if found.new_tokens else said
    said = f"{said} in each of {found.batch} rows" if found.batch > 1 else said
    return (
        f"{said}, {c.threads} threads, median of {found.rounds}, ± half the range. "
        f"Limits: {c.bandwidth / 1e9:.1f} GB/s read, {c.flops / 1e9:.0f} GFLOP/s fp32."
    )


def print_benchmark(name: str, found: Benchmark, *, profile: bool = False) -> None:
    out().print(table(f"{name} on this machine", rows(found)))
    out().print(limits(found))
    for warning in found.warnings:
        out().print(warning, markup=False)
    for row in found.rows if profile else ():
        if row.layers:
            out().print(table(f"{row.variant}: where the time goes", [_layer(x) for x in row.layers[:_LAYERS]]))


def _layer(layer: Layer) -> dict[str, Any]:
    return {"layer": layer.scope or "none", "op": layer.op, "kernels": layer.count, "ms": layer.milliseconds,
            "share": share(layer.share)}  # fmt: skip
