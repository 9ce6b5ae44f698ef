"""Every code block of README and docs: run, compared with what the page says it prints, or told why it is not run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import typer
from monograph.cli import app
from page_runner import Runner, parse
from pages import ROOT, blocks, pages, unlike

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("page", pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Runner(page).run()


def test_blocks_that_are_not_run_are_few_and_have_a_reason() -> None:
    """Prints them; `make docs` has no other exceptions."""
    found = [block for page in pages() for block in blocks(page)]
    skipped = [block for block in found if block.skipped]
    for block in skipped:
        print(f"{block.place}: {block.language}: {block.skipped}")
    visible = [block for block in found if block.language != "setup"]
    print(f"{len(skipped)} of {len(visible)} blocks are not run")
    assert all(len(block.skipped) > 9 for block in skipped)
    assert len(skipped) <= 0.15 * len(visible)


def test_options_that_prose_names_exist() -> None:
    """In tables and sentences of every page: an option of some command, and no command that is not there."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    known = {o for c in group.commands.values() for p in c.params for o in (*p.opts, *p.secondary_opts)}
    known |= {"--help", "--version"}
    for page in pages():
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for code in re.findall(r"`([^`\n]+)`", prose):
            options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", code))
            command = re.match(r"monograph ([a-z]+)", code)
            assert command is None or command[1] in group.commands, f"{page.name}: `{code}`"
            if command is None and not code.startswith("-"):
                continue
            assert options <= known, f"{page.name}: no command has {options - known} of `{code}`"


def test_a_page_is_told_from_what_it_prints() -> None:
    """The comparison sees other words, other whole numbers and other decimals, and no times."""
    assert unlike("wrote out in 0.7 s, 151.4 MB", "wrote out in 12.3 s, 99 MB\n") is None
    assert unlike("a\n...\nb 3", "a\nmore\nb 3") is None
    assert unlike("loss 3.5", "loss 3.6") is None
    assert "expected" in str(unlike("4 of 4 fused", "4 of 4 melted"))
    assert "says 4" in str(unlike("4 of 4 fused", "3 of 4 fused"))
    assert "says 3.5" in str(unlike("loss 3.5", "loss 5.6"))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("monograph bild MODEL", "no command"),
        ("monograph build MODEL OUT --targat cpu", "--targat"),
        ("python -m monograph verify", "Missing"),
        ("python examples/nothing.py", "there is no"),
        ("make nothing", "Makefile"),
        ('pip install "monograph[nothing]"', "extras"),
        ("curl something", "curl"),
    ],
)
def test_commands_that_are_not_run_are_read(line: str, what: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(what)):
        parse(line)


BROKEN = {
    "Python that fails": ("```python\n1 / 0\n```", "page.md:2: ZeroDivisionError"),
    "other output": ("```python\nprint(1)\n```\n\n```text\n2\n```", "page.md:6: .*the page says 2, but it printed 1"),
    "an unknown option": ("```bash\nmonograph show config.json --colour\n```", "ended with 2"),
    "the same where it is not run": (
        "<!-- not run: needs a GPU -->\n```bash\nmonograph show MODEL --colour\n```",
        "No such option: --colour",
    ),
    "a command that fails": ("```console\n$ monograph show none.json\nfine\n```", "ended with 1"),
    "an error that does not come": ("```console\n$ monograph --version\nerror: no\n```", "ended with 0"),
    "a block without a language": ("```\nx\n```", "no language"),
    "an indented block": ("Text\n\n    x = 1\n", "page.md:3: fence this block"),
    "a recipe with an unknown field": (
        '```toml\n[model]\nfamily = "gpt2"\n[data]\npaths = ["a"]\n[train]\nsteps = 1\nspeed = 2\n```',
        "speed",
    ),
    "JSON that is none": ("```json\n{,}\n```", "page.md:2: JSONDecodeError"),
    "a change of what is not there": ("<!-- run: a => b -->\n```python\nx = 1\n```", "does not say 'a'"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_page_that_does_not_hold_fails(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, what = BROKEN[kind]
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises((AssertionError, ValueError), match=f"(?s){what}"):
        Runner(page).run()


def test_blocks_of_a_page_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of one block are known in the next; a titled block is a file; hidden setup and changes are seen to."""
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- setup\nwrite('words.txt', 'one two')\n-->\n"
        '```python title="double.py"\ndef double(x):\n    return 2 * x\n```\n\n'
        "<!-- run: 1000 => 3 -->\n```python\nfrom double import double\n\nn = double(1000)\n```\n\n"
        "```python\nprint(n, len(open('words.txt').read().split()))\n```\n\n```text\n6 2\n```\n"
    )
    Runner(page).run()
    assert "double" not in sys.modules
