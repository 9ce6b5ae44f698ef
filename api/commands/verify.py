"""`monograph verify`: the parity table of a model, exit code 1 if anything is out of tolerance."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..backends.onnxruntime.contract import FILE, Contract
from ..console import Json, command, out, print_json, progress, table
from ..frontends.task import TASKS
from ..ir.manifest import check as check_folder
from ..machine import has_torch
from ..onnx_path import is_onnx
from ..parity import TOLERANCE, Parity
from ..parity import verify as compare
from ..resolve import resolve
from .options import FamilyOption, ModelArgument, RandomOption


@command
def verify(
    model: ModelArgument,
    built: Annotated[
        Path | None, typer.Argument(help="a built or exported folder; without it both are made and removed again")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="largest difference, relative to the largest logit")] = TOLERANCE,
    torch: Annotated[bool, typer.Option("--torch/--no-torch", help="compare PyTorch too")] = True,
    seed: Annotated[int, typer.Option(help="of the random tokens")] = 0,
    check: Annotated[bool, typer.Option("--check", help="read every byte of the folder first")] = False,
    family: FamilyOption = None,
    random: RandomOption = None,
    json_output: Json = False,
) -> None:
    """Compare PyTorch and ONNX Runtime with the NumPy reference on hard masks; decode after prefill too."""
    with progress(json_output) as bars:
        task = bars.add_task("loading", total=None)
        loaded = resolve(model, family, random, _task_of(model, built))
        if check and built is not None:
            check_folder(built, every_byte=True, required=False)
        parity = compare(
            loaded,
            built,
            tolerance=tolerance,
            torch=torch,
            seed=seed,
            observe=lambda what: bars.update(task, description=what),
        )
    if json_output:
        print_json({"passed": parity.passed, "tolerance": tolerance, "rows": parity.rows})
    else:
        print_parity(loaded.name, parity)
    if not parity.passed:
        raise typer.Exit(1)


def _task_of(model: str, built: Path | None) -> str | None:
    """Of an ONNX file, which says no task itself, that of a folder made of it, if it generates."""
    if built is None or not is_onnx(Path(model)) or not (built / FILE).is_file():
        return None
    task = Contract.read(built).task
    return task if task in TASKS and TASKS[task].generates else None


def print_parity(name: str, parity: Parity) -> None:
    """The table and its verdict."""
    out().print(table(f"{name}: difference from the NumPy reference at valid positions", map(asdict, parity.rows)))
    if not has_torch():
        out().print('PyTorch is not installed, so it was not compared: pip install "monograph[train]"', markup=False)
    for tolerance in sorted({r.tolerance for r in parity.rows}):
        rows = [r for r in parity.rows if r.tolerance == tolerance]
        failed, worst = sum(not r.passed for r in rows), max(r.difference / max(1.0, r.scale) for r in rows)
        verdict = f"{failed} of {len(rows)} rows are above" if failed else f"all {len(rows)} rows are within"
        ways = ", ".join(dict.fromkeys(r.backend for r in rows))
        own = "" if tolerance == parity.tolerance else f" of {ways}"
        shown = f"{verdict} the tolerance {tolerance:.2g}{own} (worst {worst:.2g}, relative to the largest logit)"
        out().print(shown, markup=False)
