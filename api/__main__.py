"""`python -m monograph` and the `monograph` command."""

from __future__ import annotations

import os
import sys
import traceback
from io import TextIOWrapper
from types import TracebackType

DEBUG = "MONOGRAPH_DEBUG"
"""Environment variable: set, errors are printed with their traceback. The option `--debug` sets it."""


def main() -> None:
    """Run the command line; the exit code is 0 only if what was asked was done."""
    printable = open_streams()
    sys.excepthook = tell_fault  # Before typer is imported, which calls the hook that it finds.
    try:
        from .cli import app
        from .console import ending
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None
    with ending():
        if not printable:
            raise OSError(None, "standard output is closed: there is nowhere to print to")
        app(prog_name="monograph")


def open_streams() -> bool:
    """Whether standard output is open. The three streams are afterwards, so that no file gets the number of one.

    A letter that a stream cannot write is printed as its code.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # It gets the lowest number that is free: this one.
    printable = sys.__stdout__ is not None
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
        if isinstance(stream := getattr(sys, name), TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return printable


def tell_fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error that nobody raised on purpose: what and where in a line, or every frame if that was asked."""
    if os.environ.get(DEBUG) or issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    frames = traceback.extract_tb(trace)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    said = " ".join(str(error).split())
    sys.stderr.write(f"error: a fault of Monograph, {kind.__name__}{place}: {said}\n  {DEBUG}=1 shows all of it\n")


if __name__ == "__main__":
    main()
