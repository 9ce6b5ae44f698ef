"""`python -m monograph` and the `monograph` command."""

from __future__ import annotations

from .cli import app


def main() -> None:
    """Run the command line; the exit code is 0 only if what was asked was done."""
    app(prog_name="monograph")


if __name__ == "__main__":
    main()
