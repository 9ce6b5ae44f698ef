"""Arguments and options that several commands have, with what a shell completes them to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..resolve import HELP

_FILES = (".py", ".json", ".gguf")


def models(incomplete: str) -> list[str]:
    """What a MODEL that begins so may be: assets, model files, and folders with one somewhere in them."""
    from ..assets import ASSETS

    typed = Path(incomplete).expanduser()
    folder = typed if incomplete.endswith("/") or not incomplete else typed.parent
    shown = incomplete[: incomplete.rfind("/") + 1]
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [f"{shown}{p.name}{'/' if p.is_dir() else ''}" for p in entries if p.is_dir() or p.suffix in _FILES]
    hidden = [f for f in found if not f.removeprefix(shown).startswith(".") or incomplete[len(shown) :].startswith(".")]
    return [name for name in [*ASSETS, *hidden] if name.startswith(incomplete)]


def pipelines(incomplete: str) -> list[str]:
    """Names of pipelines that begin so."""
    from ..passes.pipelines import PIPELINES

    return [name for name in sorted(PIPELINES) if name.startswith(incomplete)]


def targets(incomplete: str) -> list[str]:
    """Names of targets that begin so."""
    from ..building import TARGETS

    return [name for name in TARGETS if name.startswith(incomplete)]


ModelArgument = Annotated[str, typer.Argument(help=HELP, autocompletion=models)]
FamilyOption = Annotated[
    str | None, typer.Option("--family", help="FILE.py[:NAME] with the model that a checkpoint folder is of")
]
RandomOption = Annotated[
    int | None,
    typer.Option("--random", metavar="[SEED]", help="random weights in place of its own, drawn by SEED (0)"),
]


class WithSeed(TyperCommand):
    """A command in which `--random` may stand alone, for the seed 0."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_seed(args))


def with_seed(arguments: Sequence[str]) -> list[str]:
    """Arguments in which each `--random` that no number follows has a 0."""
    found: list[str] = []
    for i, argument in enumerate(arguments):
        found.append(argument)
        following = arguments[i + 1] if i + 1 < len(arguments) else ""
        if argument == "--random" and not following.lstrip("-").isdecimal():
            found.append("0")
    return found
