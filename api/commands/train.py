"""`monograph train`: a recipe, or a causal language model on text files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ..console import Json, command, out, print_json, working
from ..ir.errors import ConfigError


@command
def train(
    recipe: Annotated[str, typer.Argument(help="a recipe (.toml), or a model to train on --text as a recipe would")],
    folder: Annotated[Path, typer.Argument(help="where the trained checkpoint goes, in Hugging Face layout")],
    text: Annotated[list[Path] | None, typer.Option("--text", "-t", help="UTF-8 file; may be repeated")] = None,
    steps: Annotated[int | None, typer.Option(help="updates (of a model: 1000)")] = None,
    batch: Annotated[int | None, typer.Option(help="rows per update")] = None,
    length: Annotated[int | None, typer.Option(help="tokens per row")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="at its peak")] = None,
    precision: Annotated[str | None, typer.Option(help="f32, or bf16 or f16 for autocast")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the module")] = False,
    seed: Annotated[int | None, typer.Option(help="of initial weights, order of the data and dropout")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="any setting of the recipe, such as train.ema=0.999; may be repeated"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in the folder")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="also write TensorBoard events")] = False,
    json_output: Json = False,
) -> None:
    """Train as a recipe says, or a causal language model on text files (default: the help pages of Python).

    The folder gets the model, checkpoints, log.jsonl, loss.png and recipe.toml with every default filled in.
    """
    with working("loading PyTorch", json_output or os.environ.get("RANK", "0") != "0"):
        from ..data.tables import changes_of, merged
        from ..training.recipe import Recipe

    given = {
        "steps": steps, "batch": batch, "length": length, "learning_rate": learning_rate, "precision": precision,
        "device": device, "seed": seed, "compile": compile or None,
    }  # fmt: skip
    changes = changes_of(change or [])
    changes = merged({"train": {k: v for k, v in given.items() if v is not None}}, changes)
    if recipe.endswith(".toml"):
        if text:
            raise ConfigError("--text goes with a model; a recipe names its data")
        found = Recipe.read(recipe, changes)
    else:
        found = _of_model(recipe, text, changes)
    _report(found, folder, resume=resume, tensorboard=tensorboard, json_output=json_output)


def _of_model(model: str, text: list[Path] | None, changes: dict[str, Any]) -> Any:
    from ..data.tables import merged
    from ..training.recipe import PYTHON, Recipe

    values: dict[str, Any] = {
        "model": {"path": model},
        "data": {"paths": [str(p) for p in text or [PYTHON]], "held_out": 0.1},
        "train": {"steps": 1000},
    }
    return Recipe.of(merged(values, changes), folder=Path.cwd())


def _report(recipe: Any, folder: Path, *, resume: bool, tensorboard: bool, json_output: bool) -> None:
    from ..runs import follow
    from ..training.world import rank_here

    done = follow(recipe, folder, resume=resume, progress=not json_output, tensorboard=tensorboard)
    if rank_here():
        return  # Of several processes the first one speaks for all.
    measured = [s for s in done.steps if s.held_out is not None]
    if json_output:
        about = {"folder": folder, "seconds": done.seconds, "metrics": done.metrics, "notes": done.notes}
        print_json({**about, **done.sizes, "measured": measured})
        return
    sizes = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in done.sizes.items())
    out().print(f"data: {sizes}", markup=False)
    for line in filter(None, [*done.notes, str(measured[-1]) if measured else "", *done.lines()]):
        out().print(line, markup=False)
    out().print(f"wrote {folder} in {done.seconds:,.0f} s", markup=False)
