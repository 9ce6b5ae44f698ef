"""What commands print: results on stdout, progress on stderr, `--json` for machines, errors once, no traceback."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import sys
import traceback
import typing
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ParamSpec, cast

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .ir import MonographError

P = ParamSpec("P")
Debug = Annotated[bool, typer.Option("--debug", help="print the traceback of an error, too")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON value on stdout and nothing else")]


def out() -> Console:
    """The console for results; made anew so that it follows a redirected stdout."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)


def err() -> Console:
    """The console for progress and errors."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Errors raised on purpose end a command with exit code 1, printed once: as text, or as JSON if that was asked.

    Every command gets the option `--debug`, with which, or with MONOGRAPH_DEBUG set, the traceback is printed, too.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        debug = bool(kwargs.pop("debug", False)) or os.environ.get("MONOGRAPH_DEBUG", "0") not in ("", "0")
        try:
            function(*args, **kwargs)
        except (MonographError, OSError) as e:
            if debug:
                sys.stderr.write(traceback.format_exc())
            if kwargs.get("json_output"):
                print_json({"error": str(e), "kind": type(e).__name__})
            else:
                err().print(f"error: {e}", markup=False, style="red")
            raise typer.Exit(1) from None

    # typer reads the options of a command from these two.
    signature = inspect.signature(function, eval_str=True)
    option = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    run.__dict__["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), option])
    run.__annotations__ = {**typing.get_type_hints(function, include_extras=True), "debug": Debug}
    return run


def print_json(value: Any) -> None:
    """One JSON document on stdout; dataclasses, paths and NumPy numbers are written as plain values."""
    sys.stdout.write(json.dumps(value, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, np.generic):
        return cast("Any", value).item()
    if isinstance(value, (set, frozenset)):
        return sorted(cast("set[Any]", value))
    return str(value)


def table(title: str, rows: Iterable[Mapping[str, Any]]) -> Table:
    """Rows with the same keys as a table; numbers are right-aligned."""
    rows = list(rows)
    result = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=SIMPLE_HEAD)
    for name, value in rows[0].items() if rows else ():
        result.add_column(name, justify="right" if isinstance(value, (int, float)) else "left", overflow="fold")
    for row in rows:
        result.add_row(*(shown(v) for v in row.values()))
    return result


def shown(value: Any) -> str:
    """A table cell: floats with three or four significant digits."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2e}" if value and not 1e-3 <= abs(value) < 1e6 else f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@contextmanager
def progress(quiet: bool = False) -> Generator[Progress]:
    """A progress display on stderr with time passed and left; nothing when quiet, or when nobody is looking."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = err()
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bars:
        yield bars


@contextmanager
def working(what: str, quiet: bool = False) -> Generator[None]:
    """A line with a spinner on stderr while something of unknown length runs; in a log, the line alone."""
    if not quiet and not err().is_terminal:
        err().print(what, markup=False)
    with progress(quiet) as bars:
        bars.add_task(what, total=None)
        yield


def human_bytes(n: float) -> str:
    """1234567 -> 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"
