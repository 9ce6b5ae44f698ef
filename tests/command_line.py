"""Commands in tests: run in this process, with the exit code that is expected."""

from __future__ import annotations

from click.testing import Result
from monograph.cli import app
from typer.testing import CliRunner


def call(*arguments: object, code: int = 0) -> Result:
    """What a command of `monograph` printed."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, result.output
    return result
