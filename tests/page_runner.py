"""What runs the blocks of a page: Python in one module, commands in this process, files in one folder."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import typer
from monograph.cli import app
from monograph.ir.op import OPS
from pages import ROOT, Block, Command, blocks, commands, unlike
from typer.testing import CliRunner

WORDS = "the cat sat on the mat and the dog sat on the log, while a bird sang of rain, sun and snow.\n\n"


@dataclass
class Runner:
    """One page on its way: what its Python defined, what its last block printed, and what was not run, with why."""

    page: Path
    module: ModuleType = field(default_factory=lambda: ModuleType("a_page"))
    printed: str = ""
    skipped: list[Block] = field(default_factory=list[Block])

    def run(self) -> None:
        """Run every block, in the working folder. Raises AssertionError with the place for what does not hold.

        Ops that a page registers go with it, and those of other tests are not there.
        """
        own = {name: op for name, op in OPS.items() if type(op).__module__.startswith("monograph.")}
        sys.modules[self.module.__name__] = self.module
        with mock.patch.dict(OPS, own, clear=True), mock.patch.object(sys, "path", [str(Path.cwd()), *sys.path]):
            self._run()
        here = str(Path.cwd())
        for name, module in list(sys.modules.items()):
            if module is self.module or str(getattr(module, "__file__", "")).startswith(here):
                del sys.modules[name]

    def _run(self) -> None:
        for block in blocks(self.page):
            if block.skipped:
                self.skipped.append(block)
            kind = KINDS.get(block.language)
            assert kind is not None, f"{block.place}: a block of {block.language or 'no language'}, which no test reads"
            try:
                kind(self, block)
            except Exception as e:
                raise AssertionError(f"{block.place}: {type(e).__name__}: {e}") from e

    def python(self, block: Block) -> None:
        """Run a block after those before it; errors and graphs name its lines in the page."""
        if block.title:
            return self.file(block)
        code = compile("\n" * (block.line - 1) + block.code, str(block.page), "exec")
        if not block.skipped:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(code, self.module.__dict__)
            self.printed = printed.getvalue()
        return None

    def setup(self, block: Block) -> None:
        """Run a hidden block: it makes files, and has nothing in common with the Python of the page."""
        exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), dict(TOOLS))

    def shell(self, block: Block) -> None:
        """Run commands one after another and compare what they print; of those that are not run, read the options."""
        for command in commands(block):
            if block.skipped:
                parse(command.line)
            else:
                self.command(command)

    def command(self, command: Command) -> None:
        """Run one command. An error is what it should be if the page shows it."""
        code, self.printed, both = run_command(command.line)
        shows_error = command.expected is not None and "error:" in command.expected
        assert (code != 0) == shows_error, f"$ {command.line}\nended with {code}:\n{both}"
        if command.expected is not None:
            why = unlike(command.expected, self.printed)
            assert why is None or unlike(command.expected, both) is None, f"$ {command.line}\n{why}"

    def text(self, block: Block) -> None:
        """Compare with what the block before printed."""
        if block.title or block.skipped:
            return self.file(block)
        why = unlike(block.text, self.printed)
        assert why is None, why
        return None

    def toml(self, block: Block) -> None:
        """Read a recipe, of training or of data."""
        from monograph.data.recipe import Recipe as DataRecipe
        from monograph.training.recipe import Recipe

        values = tomllib.loads(block.code)
        if not block.skipped:
            (DataRecipe if "input" in values else Recipe).of(values, block.place)
        self.file(block)

    def json(self, block: Block) -> None:
        """Read a value, or one a line."""
        for text in block.code.splitlines() if block.language == "jsonl" else [block.code]:
            json.loads(text)
        self.file(block)

    def file(self, block: Block) -> None:
        """Write the file that the block is, if it has a name."""
        if block.title:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.code, encoding="utf-8")


UsageError: Any = typer.BadParameter.__base__
"""What typer raises for an option, or for arguments, that a command does not take: click's, of which it has a copy."""

KINDS: dict[str, Callable[[Runner, Block], None]] = {
    "python": Runner.python,
    "setup": Runner.setup,
    "bash": Runner.shell,
    "console": Runner.shell,
    "text": Runner.text,
    "toml": Runner.toml,
    "json": Runner.json,
    "jsonl": Runner.json,
}
"""Language => what is done with a block of it."""


def run_command(line: str) -> tuple[int, str, str]:
    """Run a line of a shell; gives exit code, stdout, and stdout with stderr. `monograph` and `python` run here."""
    words = shlex.split(line)
    if words[0] == "monograph" or words[:3] == ["python", "-m", "monograph"]:
        result = CliRunner().invoke(app, words[1:] if words[0] == "monograph" else words[3:])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.output
    if words[0] == "python":
        return (*_script(words[1:]),)
    done = subprocess.run(line, shell=True, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stdout + done.stderr


def _script(words: list[str]) -> tuple[int, str, str]:
    """A file, or `-c` and a text, as a program of its own would run it."""
    printed, folder = io.StringIO(), str(Path.cwd())
    changed = mock.patch.multiple(sys, argv=words, path=[folder, *sys.path])
    with changed, contextlib.redirect_stdout(printed):
        if words[0] == "-c":
            exec(words[1], {"__name__": "__main__"})
        else:
            runpy.run_path(words[0], run_name="__main__")
    return 0, printed.getvalue(), printed.getvalue()


def parse(line: str) -> None:
    """Check a line that is not run: commands, options, scripts, targets of make and extras of the install exist."""
    words = shlex.split(line)
    if "monograph" in words and words[0] in ("monograph", "python", "torchrun"):
        parse_options(words[words.index("monograph") + 1 :])
    elif words[0] == "python" and words[1] not in ("-m", "-c"):
        assert (ROOT / words[1]).exists(), f"{line}: there is no {words[1]}"
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        wanted = [w for w in words[1:] if "=" not in w]
        assert set(wanted) <= set(targets), f"{line}: the Makefile has {', '.join(targets)}"
    elif "pip" in words:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        wanted = [e for found in re.findall(r"\[([\w,]+)\]", line) for e in found.split(",")]
        assert set(wanted) <= set(extras), f"{line}: the extras are {', '.join(extras)}"
    else:
        assert words[0] in ("git", "cd", "python", "docker"), f"{line}: nothing knows how to check {words[0]}"


def parse_options(words: list[str]) -> None:
    """Read the arguments of `monograph` as it would, without running it. Raises AssertionError for an unknown one."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    if words and words[0] == "--help":
        return
    found = group.commands.get(words[0])
    assert found is not None, f"no command is called {words[0]!r}"
    try:
        found.make_context(words[0], words[1:])
    except UsageError as e:
        raise AssertionError(f"monograph {shlex.join(words)}: {e.format_message()}") from e


# -- what a setup may make -------------------------------------------------------------------------------------


def checkpoint(
    folder: str, family: str = "llama", *, kind: str = "byte-bpe", task: str = "causal-lm", head: str = "", **own: Any
) -> None:
    """A tiny checkpoint with random weights, and a tokenizer of a kind (`data.tokenizers.train`) for a task.

    head: task of the model, if a family has several. own: fields of its config.
    """
    import monograph as mg
    from monograph.data import tokenizers
    from monograph.frontends.dsl import load_family
    from monograph.frontends.huggingface import save_pretrained
    from small_models import small

    tokenizer = tokenizers.train(kind, [WORDS * 20], 300, task)
    config = small(family).config
    sizes = {"vocab": tokenizer.size, "max_positions": 256, "dim": 32, "head_dim": 8}
    known = {k: v for k, v in sizes.items() if hasattr(config, k)} | own
    model = mg.Model(load_family(family, head or None), config.changed(**known), tokenizer=tokenizer)
    model.weights = mg.Weights.initialize(model.graph(), seed=1)
    save_pretrained(model, Path(folder))


def write(path: str, text: str = "") -> None:
    """A file of text; without one, sixty different passages."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    passages = (f"{i} times {j} is {i * j}, {WORDS}" for i in range(10) for j in range(2, 8))
    Path(path).write_text(text or "".join(passages), encoding="utf-8")


TOOLS = {"checkpoint": checkpoint, "write": write, "Path": Path, "ROOT": ROOT, "WORDS": WORDS}
"""What a hidden setup block may use."""
