"""The house: every package is installed, every file says what it is for, README and Makefile name what exists."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("ir", "passes", "frontends", "backends", "data", "training", "inference", "api")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def tracked(*patterns: str) -> list[Path]:
    """Files that git knows or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [p for p in map(ROOT.joinpath, listed) if p.exists() and not p.is_symlink()]


def packages() -> dict[str, str]:
    """Installed name of every folder with an __init__.py."""
    found = sorted(p.parent.relative_to(ROOT) for layer in LAYERS for p in (ROOT / layer).rglob("__init__.py"))
    return {".".join(["monograph", *p.parts]).replace("monograph.api", "monograph"): str(p) for p in found}


def test_every_package_is_installed_from_its_folder() -> None:
    setup = PROJECT["tool"]["setuptools"]
    assert sorted(setup["packages"]) == sorted(packages())
    assert setup["package-dir"] == packages()


def test_package_data_is_installed() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    installed = {p for name, patterns in data.items() for g in patterns for p in (ROOT / packages()[name]).glob(g)}
    others = {p for layer in LAYERS for p in tracked(layer) if p.suffix not in (".py", ".md")}
    assert others <= installed


@pytest.mark.parametrize("file", tracked("*.py"), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_says_what_it_is_for(file: Path) -> None:
    text = file.read_text()
    if not text and file.name == "__init__.py":
        return
    doc = ast.get_docstring(ast.parse(text))
    assert doc, f"{file} does not begin with a docstring"
    assert text.startswith(('"""', 'r"""', "#!")), "the docstring is not on the first line"


def test_constraints_pin_torch_and_every_dependency() -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    names = {re.sub(r"[-_.]+", "-", k).lower() for k in pinned}
    extras = [d for group in PROJECT["project"]["optional-dependencies"].values() for d in group]
    wanted = {re.match(r"[\w.-]+", d)[0] for d in (*PROJECT["project"]["dependencies"], *extras)}  # type: ignore[index]
    missing = {re.sub(r"[-_.]+", "-", w).lower() for w in wanted} - names
    assert missing <= {"monograph", "onnxruntime"}, "packages without a pinned version"
    assert "+" not in pinned["torch"]


def test_tables_have_a_benchmark() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text()
        for name in re.findall(r"<!-- (\w+) -->", text):
            assert (ROOT / "benchmarks" / f"{name}.py").exists(), name
            assert f"<!-- /{name} -->" in text


def test_readme_and_ci_name_real_targets() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert {"demo", "test", "test-fast", "lint", "types", "bench"} <= targets
    assert {t for line in re.findall(r"make ([a-z][a-z -]*)", README) for t in line.split() if t in line} & targets
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


@pytest.mark.parametrize("python", ["no-such-python", "{old}"])
def test_make_says_what_is_missing(python: str, tmp_path: Path) -> None:
    """On a machine without a suitable Python, `make test` ends with a sentence, not with a stack of errors."""
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ncase "$*" in *version_info*) exit 1;; --version) echo Python 3.8.1;; esac\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    command = ["make", "test", f"PYTHON={python.format(old=old)}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()
