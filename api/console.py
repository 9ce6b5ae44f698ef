"""What commands print: results on stdout, progress on stderr, `--json` for machines, errors once, no traceback."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import os
import re
import signal
import sys
import threading
import traceback
import typing
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any, ParamSpec, cast

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .__main__ import DEBUG
from .ir import MonographError
from .ir.missing import needed
from .limits import check_numbers

P = ParamSpec("P")
Debug = Annotated[bool, typer.Option("--debug", help="print the traceback of an error, too")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON value on stdout and nothing else")]


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that move a cursor, change colours or turn the direction of writing."""


class _Console(Console):
    """A console on which names out of a file are text, whatever characters they have."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(_CONTROL.sub(lambda c: repr(c[0])[1:-1], text), **options)


class _Output(_Console):
    """A console that leaves a reader that went away to `ending`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def out() -> Console:
    """The console for results; made anew so that it follows a redirected stdout."""
    return _Output(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)


def err() -> Console:
    """The console for progress and errors."""
    return _Console(stderr=True, highlight=False, soft_wrap=True)


INTERRUPTED, CLOSED_PIPE = 130, 141
"""Exit codes of a shell for a command that Ctrl-C ended, and for one whose reader went away."""


def command(function: Callable[P, None]) -> Callable[P, None]:
    """A function as a command: numbers that its options cannot have are refused first, and it ends as `ending` says.

    Every command gets the option `--debug`, which sets MONOGRAPH_DEBUG: errors are printed with their traceback.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        if kwargs.pop("debug", False):
            os.environ[DEBUG] = "1"
        name = f"monograph {function.__name__.rstrip('_')}"
        with terminable(), ending(as_json=bool(kwargs.get("json_output"))), needed(name):
            check_numbers(function, kwargs)
            function(*args, **kwargs)

    # typer reads the options of a command from these two.
    signature = inspect.signature(function, eval_str=True)
    option = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    run.__dict__["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), option])
    run.__annotations__ = {**typing.get_type_hints(function, include_extras=True), "debug": Debug}
    return run


class _Terminated(BaseException):
    """SIGTERM came."""


@contextmanager
def terminable() -> Generator[None]:
    """SIGTERM leaves the block as an error does, so that what it began to write is removed, and then ends the program.

    A second one does not disturb that. Where somebody else handles the signal, nothing changes.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except _Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def ending(*, as_json: bool = False) -> Generator[None]:
    """Errors raised on purpose end the program with exit code 1, printed once: as text, or as JSON if that was asked.

    So does what the system refuses: files, memory, a full disk. Ctrl-C is one line, and a reader that went away
    (`| head`) none. Nothing that was printed waits to be written when the block has ended.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        raise SystemExit(CLOSED_PIPE) from None
    except KeyboardInterrupt:
        tell("interrupted")
        raise SystemExit(INTERRUPTED) from None
    except (MonographError, OSError, MemoryError) as e:
        if os.environ.get(DEBUG):
            tell(traceback.format_exc())
        _tell_error(e, as_json)
        raise SystemExit(e.exit_code if isinstance(e, MonographError) else 1) from None


def _tell_error(error: Exception, as_json: bool) -> None:
    said = str(error)
    if isinstance(error, OSError) and not isinstance(error, MonographError):
        said = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    elif isinstance(error, MemoryError):
        said = f"there is not enough memory: {error}".removesuffix(": ")
    if as_json:
        with contextlib.suppress(OSError):
            print_json({"error": said, "kind": type(error).__name__})
            sys.stdout.flush()
            return
    _drop_unwritten()
    tell(f"error: {said}")


def tell(text: str) -> None:
    """A line on stderr, in red where there are colours; nowhere when that is closed, too."""
    with contextlib.suppress(OSError):
        err().print(text, markup=False, style="red")


def _drop_unwritten() -> None:
    """What a full disk did not take is not tried again when the program ends."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()


def _drop_output() -> None:
    """Let all that is printed from now on go nowhere, and what waits to be written, too."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError):  # Streams that a caller put in place have no number.
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


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
