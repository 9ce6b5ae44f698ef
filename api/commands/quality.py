"""`monograph quality`: perplexity, divergence and greedy tokens of a built folder, beside its model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..console import Json, command, out, print_json, progress
from ..fidelity import NEW, PROMPTS, READ
from ..fidelity import quality as measure
from ..samples import WINDOW


@command
def quality(
    folder: Annotated[Path, typer.Argument(help="what `monograph build` wrote")],
    text: Annotated[Path, typer.Option(help="a UTF-8 file to measure on")],
    against: Annotated[str | None, typer.Option(help="the model before quantization, as `build` takes it")] = None,
    tokens: Annotated[int, typer.Option(help="how many tokens of the text are read")] = READ,
    window: Annotated[int, typer.Option(help="tokens that are read together")] = WINDOW,
    prompts: Annotated[int, typer.Option(help="texts that the folder continues (with --against)")] = PROMPTS,
    new: Annotated[int, typer.Option(help="greedy tokens of each")] = NEW,
    json_output: Json = False,
) -> None:
    """Perplexity of a folder on a text, and how often it chooses the tokens of the model that it was built from."""
    with progress(json_output) as bars:
        bar = bars.add_task("opening", total=None)
        found = measure(
            folder,
            text,
            against=against,
            tokens=tokens,
            window=window,
            prompts=prompts,
            new=new,
            observe=lambda what: bars.update(bar, description=what),
        )
    if json_output:
        print_json({**asdict(found), "rise": found.rise})
    else:
        out().print(str(found), markup=False)
