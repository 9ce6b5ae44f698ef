"""What the small install can do: define, build, verify and run without PyTorch, and say what it lacks for the rest."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKED = ("torch", "networkx", "filelock", "tomli_w", "transformers", "matplotlib", "pyarrow", "scipy")
"""What `monograph[cpu]` does not bring."""

BEGIN = f"""
import importlib.abc, json, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
import monograph as mg
"""
DEFINE = """
class Small(mg.Config):
    vocab: int = 40
    dim: int = 16

@mg.model
def small(m: mg.Scope, c: Small, input_ids, attention_mask):
    x = m.embed("embed", input_ids, c.vocab, c.dim)
    q, k, v = (m.linear(n, x, c.dim).split_heads(2) for n in "qkv")
    x = x + mg.ops.attention(q, k, v, causal=True, mask=mg.key_mask(attention_mask)).merge_heads()
    return m.linear("head", x, c.vocab)
"""


def python(code: str) -> str:
    """What a program prints whose interpreter has none of the blocked packages."""
    done = subprocess.run([sys.executable, "-c", BEGIN + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_model_is_defined_built_verified_and_run(tmp_path: Path) -> None:
    code = (
        DEFINE
        + f"""
model = mg.init(small, seed=1)
engine = mg.build(model, {str(tmp_path / "built")!r})
parity = mg.verify(model, engine)
found = engine.generate([1, 2, 3], max_new_tokens=4)
mg.export(model, {str(tmp_path / "portable")!r})
print(json.dumps([parity.passed, sorted({{r.backend for r in parity.rows}}), len(found.ids)]))
"""
    )
    assert json.loads(python(code)) == [True, ["ort", "ort chunks", "ort session"], 4]


@pytest.mark.parametrize("what", ["mg.train", "mg.to_torch(mg.init(small))"])
def test_what_needs_torch_says_what_installs_it(what: str) -> None:
    code = f"{DEFINE}\ntry:\n    {what}\nexcept mg.MonographError as e:\n    print(isinstance(e, ImportError), e)"
    said = python(code)
    assert said.startswith("True ")
    assert "needs torch, which is not installed" in said
    assert 'pip install "monograph[train]"' in said


def test_commands_do_what_they_can_without_torch(tmp_path: Path) -> None:
    file = tmp_path / "small.py"
    file.write_text("import monograph as mg\n" + DEFINE)
    code = """
from typer.testing import CliRunner
from monograph.cli import app
calls = [
    ["show", FILE], ["verify", FILE, "--random"], ["build", FILE, OUT, "--random"], ["bench", FILE, "--random",
    "--prompt", "4", "--new-tokens", "2", "--rounds", "1"],
    ["train", FILE, OUT + "2"], ["finetune", FILE, OUT, "-d", FILE], ["compare"],
]
print(json.dumps([[r.exit_code, r.output] for r in (CliRunner().invoke(app, c) for c in calls)]))
""".replace("FILE", repr(str(file))).replace("OUT", repr(str(tmp_path / "out")))
    show, verify, build, bench, *others = json.loads(python(code))
    assert [c[0] for c in (show, verify, build, bench)] == [0, 0, 0, 0], (show, verify, build, bench)
    for exit_code, output in others:
        assert exit_code == 1
        assert 'pip install "monograph[train]"' in output
        assert "Traceback" not in output


def test_the_extras_are_what_the_tests_say() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    small = " ".join(project["dependencies"] + project["optional-dependencies"]["cpu"])
    assert not any(f"{name.replace('_', '-')}>" in small for name in BLOCKED)
    from monograph.ir.missing import EXTRAS

    for package, extra in EXTRAS.items():
        assert any(package.replace("_", "-") in line for line in project["optional-dependencies"][extra])
