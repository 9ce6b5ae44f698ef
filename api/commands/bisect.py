"""`monograph bisect`: the smallest part in which two files, two runtimes or two sides of a pass differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..console import Json, command, out, print_json, working
from ..ir import MonographError
from ..resolve import resolve
from .options import FamilyOption, ModelArgument, pipelines

if TYPE_CHECKING:
    from ..bisecting import Bisection


@command
def bisect(
    a: ModelArgument,
    b: Annotated[
        str | None, typer.Argument(help="another ONNX file; without it: the reference in NumPy, on the first")
    ] = None,
    pass_name: Annotated[str | None, typer.Option("--pass", help="compare a model before and after this pass")] = None,
    pipeline: Annotated[str, typer.Option(help="the pipeline that has the pass", autocompletion=pipelines)] = "encode",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="new folder for both sides of the part and its inputs")
    ] = None,
    bound: Annotated[
        float | None, typer.Option(help="difference allowed, as a share of the largest number (default: computed)")
    ] = None,
    family: FamilyOption = None,
    json_output: Json = False,
) -> None:
    """Find where two ONNX files differ. Exit code 0: nowhere on the hard inputs; 1: found; 2: nothing to compare."""
    from ..bisecting import BisectError, bisect_pass
    from ..bisecting import bisect as compare

    try:
        with working("comparing", json_output):
            if pass_name is None:
                found = compare(a, b, output, bound=bound)
            elif b is not None:
                raise BisectError("--pass and a second file do not go together")
            else:
                found = bisect_pass(resolve(a, family), pipeline, pass_name, output, bound=bound)
    except MonographError as e:
        e.exit_code = 2  # 1 says that a difference was found.
        raise
    _print(found, json_output)
    if found.differs:
        raise typer.Exit(1)


def _print(found: Bisection, json_output: bool) -> None:
    if json_output:
        print_json(found.as_json())
        return
    if not found.differs:
        out().print(f"no difference on {found.trials} sets of inputs (bound {found.bound:.2g})", markup=False)
        return
    layer = f" in {found.layer}" if found.layer else ""
    out().print(f"differs first at {found.value}, made by {found.node} ({found.op}){layer}", markup=False)
    out().print(f"{found.trial}: {found.value}{found.what}", markup=False)
    out().print(f"largest error: {found.error:.2e} of the largest number, allowed {found.bound:.2e}", markup=False)
    alone = "shows the difference alone" if found.confirmed else "does not show the difference alone"
    out().print(f"a part of {len(found.nodes)} nodes {alone}: {', '.join(found.nodes[:8])}", markup=False)
    if found.folder:
        out().print(f"wrote {found.folder}", markup=False)
