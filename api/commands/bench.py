"""`monograph bench`: tokens per second before and after the passes, as a share of what this machine can do."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..console import Json, command, out, print_json, progress, table
from ..performance import Benchmark, Speed
from ..performance import bench as measure
from ..resolve import resolve
from .options import FamilyOption, ModelArgument, RandomOption


@command
def bench(
    model: ModelArgument,
    prompt: Annotated[int | None, typer.Option(help="tokens of the prompt; none: 128, or what fits")] = None,
    new_tokens: Annotated[int | None, typer.Option(help="tokens generated after it; none: 32, or what fits")] = None,
    rounds: Annotated[int, typer.Option(help="of which the median counts; variants take turns")] = 5,
    threads: Annotated[int | None, typer.Option(help="none: all cores")] = None,
    family: FamilyOption = None,
    random: RandomOption = None,
    json_output: Json = False,
) -> None:
    """Measure a model on ONNX Runtime, in standard ops and fused: prefill and decode, or one call."""
    loaded = resolve(model, family, random)
    with progress(json_output) as bars:
        bar = bars.add_task("", total=None)
        found = measure(
            loaded,
            prompt=prompt,
            new_tokens=new_tokens,
            rounds=rounds,
            threads=threads,
            observe=lambda what: bars.update(bar, description=what),
        )
    if json_output:
        print_json(found)
    else:
        print_benchmark(loaded.name, found)


def rows(found: Benchmark) -> list[dict[str, Any]]:
    """The table for people: tokens per second, percent of the limits, and times the first row."""
    first = found.rows[0]
    return [
        {
            "graph": r.variant,
            "nodes": r.nodes,
            f"{'prefill' if found.new_tokens else 'one call'} ({found.unit}/s)": r.prefill,
            "of fp32 limit (%)": 100 * r.prefill_share,
            **_decode(found, r),
            "times": r.decode / first.decode if found.new_tokens else r.prefill / first.prefill,
        }
        for r in found.rows
    ]


def _decode(found: Benchmark, row: Speed) -> dict[str, Any]:
    if not found.new_tokens:
        return {}
    return {"decode (tokens/s)": row.decode, "of bandwidth (%)": 100 * row.decode_share}


def limits(found: Benchmark) -> str:
    """One sentence about the conditions."""
    c = found.ceilings
    said = f"{found.prompt} {found.unit}" if found.unit == "tokens" else "one row"
    said = f"{found.prompt} prompt tokens, {found.new_tokens} new ones" if found.new_tokens else said
    return (
        f"{said}, {c.threads} threads, median of {found.rounds}. "
        f"Limits: {c.bandwidth / 1e9:.1f} GB/s read, {c.flops / 1e9:.0f} GFLOP/s fp32."
    )


def print_benchmark(name: str, found: Benchmark) -> None:
    out().print(table(f"{name} on ONNX Runtime", rows(found)))
    out().print(limits(found))
