"""The layering rule: a file imports its own layer or a lower one, and ir/ knows neither torch nor onnx."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RANK = {"ir": 0, "passes": 1, "frontends": 2, "data": 3, "backends": 3, "training": 4, "inference": 4, "api": 5}
"""Height of each folder; those of one height stand side by side and do not see each other."""

FILES = sorted(p.relative_to(ROOT) for layer in RANK for p in (ROOT / layer).rglob("*.py"))


def imported(tree: ast.AST, file: Path) -> list[tuple[int, str]]:
    """(line, dotted module) of every import in the file, relative ones resolved from the repository root."""
    found: list[tuple[int, str]] = []
    package = [] if file.parts[0] == "api" and len(file.parts) == 2 else list(file.parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.lineno, node.module or ""))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - (node.level - 1)]
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.lineno, ".".join(["monograph", *base, module])) for module in modules]
    return found


def problems(source: str, file: Path) -> list[str]:
    """Everything in the file that breaks the rule, with its line."""
    layer = file.parts[0]
    found: list[str] = []
    for line, module in imported(ast.parse(source), file):
        parts = module.split(".")
        if parts[0] in RANK:
            found.append(f"{file}:{line}: bare `import {module}` makes a second copy of every class")
            continue
        if layer == "ir" and parts[0] in ("torch", "onnx", "onnx_ir", "onnxruntime", "transformers"):
            found.append(f"{file}:{line}: ir imports {parts[0]}")
        if parts[0] != "monograph":
            continue
        other = parts[1] if len(parts) > 1 and parts[1] in RANK else "api"
        if RANK[other] > RANK[layer] or (RANK[other] == RANK[layer] and other != layer):
            found.append(f"{file}:{line}: {layer} imports {other}")
    return found


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_down(file: Path) -> None:
    assert problems((ROOT / file).read_text(), file) == []


@pytest.mark.parametrize(
    ("file", "source", "message"),
    [
        ("ir/op.py", "from ..passes import cse", "ir imports passes"),
        ("ir/ops/norm.py", "from ...frontends.dsl import Config", "ir imports frontends"),
        ("ir/types.py", "def f():\n    import torch", "ir imports torch"),
        ("ir/types.py", "from onnx import helper", "ir imports onnx"),
        ("passes/cse.py", "from ir import Graph", "second copy"),
        ("passes/cse.py", "from .. import backends", "passes imports backends"),
        ("training/loop.py", "from ..inference import generate", "training imports inference"),
        ("data/run.py", "from ..training.corpus import Corpus", "data imports training"),
        ("data/run.py", "from ..backends import torch", "data imports backends"),
        ("inference/generate.py", "from monograph.training import train", "inference imports training"),
        ("backends/torch/lower.py", "from monograph import load", "backends imports api"),
        ("backends/torch/lower.py", "from ... import load", "backends imports api"),
    ],
)
def test_the_rule_sees(file: str, source: str, message: str) -> None:
    (found,) = problems(source, Path(file))
    assert message in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("passes/cse.py", "from ..ir.graph import Graph\nfrom .dce import dce\nimport networkx"),
        ("training/loop.py", "import torch\nfrom ..backends.torch import to_torch"),
        ("api/__init__.py", "from .ir import Graph\nfrom .training import train"),
        ("api/commands/run.py", "from ..console import console\nfrom ..inference import generate"),
    ],
)
def test_the_rule_allows(file: str, source: str) -> None:
    assert problems(source, Path(file)) == []


def test_tests_and_examples_use_the_installed_package() -> None:
    """Relative or bare imports of the layers would load the sources a second time under another name."""
    files = [p for folder in ("tests", "examples", "benchmarks") for p in (ROOT / folder).rglob("*.py")]
    bare = [
        f"{p.relative_to(ROOT)}:{line}: {module}"
        for p in files
        for line, module in imported(ast.parse(p.read_text()), p.relative_to(ROOT))
        if module.split(".")[0] in RANK
    ]
    assert bare == []
