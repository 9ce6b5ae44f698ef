"""`monograph triton`: a model repository for Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import Json, command, out, print_json
from ..inference.server.triton import write_repository


@command
def triton(
    folder: Annotated[Path, typer.Argument(help="a folder made by `build`")],
    repository: Annotated[Path, typer.Argument(help="the model repository; other models in it stay")],
    name: Annotated[str | None, typer.Option(help="of the model; by default that of the folder")] = None,
    rows: Annotated[int, typer.Option(help="requests computed at once")] = 8,
    threads: Annotated[int | None, typer.Option(help="by default one a physical core")] = None,
    json_output: Json = False,
) -> None:
    """Write a model into a Triton repository: configuration, loader and a copy of the built folder."""
    written = write_repository(folder, repository, name=name, rows=rows, threads=threads)
    if json_output:
        print_json({"folder": str(written)})
    else:
        out().print(f"wrote {written}", markup=False)
