"""How commands end: one message and an exit code, whatever the streams, the disk, numbers or the user do to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from command_line import call
from monograph.cli import app
from monograph.limits import LIMITS, numeric_options
from typer.testing import CliRunner

COMMAND = [sys.executable, "-m", "monograph"]
CONFIG = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


def shell(text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line with `$M` for the command; its exit code is that of the command, also in a pipe."""
    words = " ".join(COMMAND)
    given = {**os.environ, "M": words, **environment}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", text], env=given, capture_output=True, text=True, check=False
    )


def test_every_number_of_every_command_has_limits() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        lost = [name for name in numeric_options(command.callback) if name not in LIMITS]
        assert not lost, f"{command.callback.__name__}: say in api/limits.py what {lost} may be"


NUMBERS = [(c.callback.__name__.strip("_"), n) for c in app.registered_commands if c.callback
           for n in numeric_options(c.callback)]  # fmt: skip
REQUIRED = {
    "build": ("x", "y"), "verify": ("x",), "run": ("x", "hi"), "bench": ("x",), "train": ("x", "y"), "show": ("x",),
    "finetune": ("x", "y", "--data", "z"), "compare": (), "data": ("r.toml",), "explain": ("x",), "optimize": ("x",),
    "serve": ("x",), "bisect": ("x",), "triton": ("x", "y"), "quality": ("x", "--text", "t"),
}  # fmt: skip


@pytest.mark.parametrize(("command", "name"), NUMBERS)
@pytest.mark.parametrize("value", ["-3", "1" + "0" * 400, "nan", "inf", "1e400"])
def test_numbers_that_an_option_cannot_have(command: str, name: str, value: str) -> None:
    option = f"--{name.replace('_', '-')}"
    result = CliRunner().invoke(app, [command, *REQUIRED[command], f"{option}={value}"])
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert option in result.output and "Traceback" not in result.output


def test_numbers_in_json(config: Path) -> None:
    found: Any = json.loads(call("run", config, "hi", "--top-p", "nan", "--json", code=1).stdout)
    assert found == {"error": "--top-p is nan, expected 0 to 1", "kind": "ConfigError"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("arguments", ["show {}", "show {} --json", "--help", "--version", "doctor --help"])
def test_a_full_disk(config: Path, arguments: str) -> None:
    done = shell(f"$M {arguments.format(config)} > /dev/full")
    assert done.returncode == 1 and done.stderr.strip() == "error: No space left on device"


def test_a_reader_that_goes_away(config: Path) -> None:
    done = shell(f"$M show {config} | true")
    assert done.returncode in (0, 141) and done.stderr == ""
    done = shell(f"sleep 0.1 | $M show {config} | exec sleep 0")
    assert done.returncode in (0, 141) and done.stderr == ""


def test_closed_streams(config: Path) -> None:
    done = shell(f"$M show {config} >&-")
    assert done.returncode == 1
    assert done.stderr.strip() == "error: standard output is closed: there is nowhere to print to"
    assert shell(f"$M show {config} <&- ").returncode == 0
    assert shell(f"$M show {config} 2>&-").returncode == 0
    assert shell(f"$M show {config}.not 2>&-").returncode == 1


@pytest.mark.parametrize("environment", [
    {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0"},
    {"TERM": "dumb"}, {"HOME": "/nonexistent"}, {"COLUMNS": "1"}, {"FORCE_COLOR": "1"},
])  # fmt: skip
def test_other_environments(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "日本"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    done = shell(f"$M show {folder}/config.json --counts && $M show {folder}/conf.json", **environment)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "there is no such file" in done.stderr


def test_a_fault_is_one_message() -> None:
    """What nobody raised on purpose: what and where, and all of it when asked."""
    code = "import monograph.__main__ as m, monograph.limits as l; l.LIMITS = {}; m.main()"
    words = [sys.executable, "-c", code, "show", "x"]
    said = subprocess.run(words, capture_output=True, text=True, check=False)
    assert said.returncode == 1 and len(said.stderr.splitlines()) == 2
    assert said.stderr.startswith("error: a fault of Monograph, KeyError at ") and "'shard'" in said.stderr
    environment = {**os.environ, "MONOGRAPH_DEBUG": "1"}
    said = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert said.returncode == 1 and said.stderr.startswith("Traceback")


def test_ctrl_c() -> None:
    code = "import monograph.__main__ as m, monograph.limits as l, signal\n" \
           "signal.signal(signal.SIGINT, signal.default_int_handler)  # Ignored in what runs in the background.\n" \
           "l.numeric_options = lambda f: signal.raise_signal(signal.SIGINT); m.main()"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, "show", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 130 and done.stderr == "interrupted\n"


def test_a_command_ends_once() -> None:
    from monograph.console import ending

    for error, code in ((BrokenPipeError(32, "x"), 141), (KeyboardInterrupt(), 130), (MemoryError(), 1)):
        with pytest.raises(SystemExit) as ended, ending():
            raise error
        assert ended.value.code == code
    with pytest.raises(typer.Exit), ending():
        raise typer.Exit(3)
