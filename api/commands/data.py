"""`monograph data`: a corpus through cleaning, deduplication, splitting and tokenizing into shards for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID

from ..console import Json, command, out, print_json, progress, table
from ..ir import MonographError
from ..ir.display import size
from ..ir.errors import did_you_mean

ENGINES = ("local", "ray")


@command
def data(
    recipe: Annotated[Path, typer.Argument(help="recipe in TOML (see docs/data.md), or a run to check")],
    output: Annotated[Path | None, typer.Option("--out", "-o", help="folder of the run")] = None,
    workers: Annotated[int, typer.Option(help="processes; 0: as many as there are cores")] = 0,
    engine: Annotated[str, typer.Option(help="local, or ray: Ray Data on a cluster")] = "local",
    address: Annotated[str | None, typer.Option(help="Ray cluster to use; by default this machine alone")] = None,
    redo: Annotated[bool, typer.Option("--redo", help="make again what has other settings or input")] = False,
    check: Annotated[bool, typer.Option("--check", help="read all shards of a run and check every byte")] = False,
    json_output: Json = False,
) -> None:
    """Read, clean, deduplicate, split, tokenize and pack a corpus; stopped runs go on where they stopped.

    The shards depend on recipe and input only, not on workers or engine. report.html in the run tells what happened.
    """
    if check:
        _check(recipe, json_output)
        return
    if output is None:
        raise MonographError("no folder was given for the run", hint="monograph data RECIPE --out FOLDER")
    from ..data import prepare

    with progress(json_output) as bars:
        report = prepare(recipe, output, engine=_engine(engine, workers, address), redo=redo, show=_Show(bars))
    if json_output:
        print_json(report)
    else:
        _print(report, output)


class _Show:
    """One bar for each stage."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, of: int) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage)
        self.bars.update(self.tasks[stage], completed=done, total=max(of, 1))


def _engine(name: str, workers: int, address: str | None) -> Any:
    from ..data import Local, RayData
    from ..data.engine import workers_by_default

    if name not in ENGINES:
        raise MonographError(f"no engine is called {name!r}{did_you_mean(name, ENGINES)}")
    if name == "ray":
        return RayData(workers or workers_by_default(), address)
    if address is not None:
        raise MonographError("--address is for --engine ray")
    return Local(workers or workers_by_default())


def _check(run: Path, json_output: bool) -> None:
    from ..data import Shards
    from ..data.shards import SIDES

    found: dict[str, Any] = {}
    for split in SIDES:
        shards = Shards(run, split)
        shards.verify()
        found[split] = {"shards": len(shards.shards), "documents": len(shards), "tokens": shards.tokens}
    if json_output:
        print_json(found)
    else:
        out().print(table(f"{run}: every byte is as written", [{"split": s, **row} for s, row in found.items()]))


def _print(report: dict[str, Any], run: Path) -> None:
    read, duplicates = report["input"], report["duplicates"]
    rows = [
        {"filter": r["name"], "what": r["says"], "documents": r["documents"], "lines": r["lines"]}
        for r in report["filters"]
    ]
    if rows:
        out().print(table("removed or changed", rows))
    out().print(table("shards", [{"split": s, **row} for s, row in report["splits"].items()]))
    out().print(
        f"{read['documents']:,} documents read ({size(read['text_bytes'])}), "
        f"{report['cleaned']['documents']:,} clean, {duplicates['exact']:,} exact and {duplicates['near']:,} "
        f"near-duplicates; {sum(report['seconds'].values()):,.0f} s of work"
    )
    out().print(f"report: {run / 'report.html'}")
