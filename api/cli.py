"""The `monograph` command: every command of commands/, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from . import __version__
from .commands.bench import bench
from .commands.bisect import bisect
from .commands.build import build
from .commands.compare import compare
from .commands.data import data
from .commands.doctor import doctor
from .commands.explain import explain
from .commands.finetune import finetune, merge
from .commands.optimize import optimize_
from .commands.options import WithSeed
from .commands.quality import quality
from .commands.run import run
from .commands.serve import serve
from .commands.show import show
from .commands.train import train
from .commands.triton import triton
from .commands.verify import verify

app = typer.Typer(
    name="monograph",
    help="Write a transformer once. Train it in PyTorch, serve it on ONNX Runtime, and know both are the same model.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    pass


app.command(cls=WithSeed)(show)
app.command()(explain)
app.command("optimize")(optimize_)
app.command()(bisect)
app.command(cls=WithSeed)(build)
app.command(cls=WithSeed)(verify)
app.command(cls=WithSeed)(run)
app.command()(serve)
app.command()(triton)
app.command(cls=WithSeed)(bench)
app.command()(quality)
app.command()(train)
app.command()(finetune)
app.command()(merge)
app.command()(compare)
app.command()(data)
app.command()(doctor)
