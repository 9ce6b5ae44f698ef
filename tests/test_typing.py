"""Type checkers and editors: what people write passes, mistakes do not, and an install leads to the files."""

from __future__ import annotations

import ast
import inspect
import os
import pydoc
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import monograph as mg
import pytest
from monograph import ops
from monograph.ir import OPS

ROOT = Path(__file__).parent.parent
EVERY_NAME = ROOT / "tests" / "typing" / "every_name.py"

WRONG = """
import monograph as mg
from monograph import ops

mg.nothing
ops.sofmax


def wrong(x: mg.Value, family: mg.Family) -> None:
    ops.softmax(x, dim=-1)
    ops.maximum(x, "0")
    x.view(3)
    x["a"]
    family.weights
    mg.model(3)
"""
"""Each line but the imports and the head is an error."""


def copied(folder: Path) -> Path:
    """The files of the repository that an install needs, links as links."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        file = ROOT / name
        if name.startswith(("tests/", "docs/", "benchmarks/")) or not (file.exists() or file.is_symlink()):
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if file.is_symlink():
            (folder / name).symlink_to(file.readlink())
        else:
            (folder / name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def environment(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the editable install of `repository`, and all else from that of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    build = "import sys, monograph_build as b; print(b.build_editable(sys.argv[1]))"
    hook = {**os.environ, "PYTHONPATH": str(repository / ".ci")}
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=repository, env=hook, capture_output=True, text=True, check=True
    )
    zipfile.ZipFile(folder / done.stdout.split()[-1]).extractall(site)
    (site / "others.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    return folder


def python(environment: Path, code: str, cwd: Path) -> str:
    command = [str(environment / "bin" / "python"), "-c", code]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_an_editable_install_is_one_name_and_leads_to_the_files(
    repository: Path, environment: Path, tmp_path: Path
) -> None:
    modules = ["", ".cli", ".ir", ".ir.graph", ".ir.ops.norm", ".backends.torch", ".commands.show", ".training.loop"]
    names = [f"monograph{m}" for m in modules]
    code = f"import importlib\nfor n in {names}: print(importlib.import_module(n).__file__)"
    real = ["api/__init__.py", "api/cli.py", "ir/__init__.py", "ir/graph.py", "ir/ops/norm.py",
            "backends/torch/__init__.py", "api/commands/show.py", "training/loop.py"]  # fmt: skip
    found = [Path(p) for p in python(environment, code, tmp_path).splitlines()]
    assert found == [repository.resolve() / p for p in real]
    for room in ("ir", "passes", "api"):
        code = f"import importlib.util as u; s = u.find_spec({room!r}); print(s and s.origin)"
        assert python(environment, code, tmp_path) in ("None", ""), f"{room} is a name of its own"
    records = list(environment.rglob("monograph-*.dist-info/RECORD"))
    assert records and "monograph = monograph.__main__:main" in (records[0].parent / "entry_points.txt").read_text()


@pytest.mark.slow
def test_new_files_and_rooms_are_there_without_a_new_install(
    repository: Path, environment: Path, tmp_path: Path
) -> None:
    (repository / "passes" / "newest.py").write_text("WHAT = 'pass'\n")
    (repository / "api" / "newest.py").write_text("WHAT = 'name'\n")
    (repository / "cellar").mkdir()
    (repository / "cellar" / "__init__.py").write_text("WHAT = 'room'\n")
    (repository / "api" / "cellar").symlink_to("../cellar")
    code = "from monograph import cellar, newest\nfrom monograph.passes import newest as p\n"
    code += "print(cellar.WHAT, newest.WHAT, p.WHAT, cellar.__file__)"
    assert python(environment, code, tmp_path) == f"room name pass {repository.resolve()}/cellar/__init__.py"


def test_every_room_has_its_link() -> None:
    """Rooms are packages beside `api`, which has a link to each; the path of the install leads to `api`."""
    rooms = {p.parent.name for p in ROOT.glob("*/__init__.py")} - {"api", "tests", "examples", "benchmarks"}
    links = {p.name: p.readlink() for p in (ROOT / "api").iterdir() if p.is_symlink()}
    assert links == {room: Path("..") / room for room in rooms}
    assert (ROOT / ".ci" / "editable" / "monograph").resolve() == ROOT / "api"


@pytest.mark.slow
def test_the_wheel_has_every_file(repository: Path, tmp_path: Path) -> None:
    """Built from the source distribution, as an index would have it."""
    code = "import sys, tarfile, monograph_build as b; to = sys.argv[1]\n"
    code += "tarfile.open(f'{to}/{b.build_sdist(to)}').extractall(to, filter='data')"
    env = {**os.environ, "PYTHONPATH": str(repository / ".ci")}
    run: dict[str, Any] = {"env": env, "capture_output": True, "check": True}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=repository, **run)
    source = next(p for p in tmp_path.iterdir() if p.is_dir())
    env["PYTHONPATH"] = str(source / ".ci")
    code = "import sys, monograph_build as b; b.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=source, **run)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    links = {p.name for p in (repository / "api").iterdir() if p.is_symlink()}
    wanted = {f"monograph/{p.relative_to(repository)}" for room in links for p in (repository / room).rglob("*.py")}
    inside = [p for p in (repository / "api").rglob("*.py") if p.relative_to(repository / "api").parts[0] not in links]
    wanted |= {f"monograph/{p.relative_to(repository / 'api')}" for p in inside}
    newest = {"monograph/cellar/__init__.py"}  # A room that another test made, which pyproject.toml does not name.
    assert wanted - newest == {n for n in names if n.endswith(".py")}
    assert {"monograph/py.typed", "monograph/backends/kernels_cpu.txt"} <= names


def test_the_file_for_type_checkers_has_every_public_name() -> None:
    nodes = list(ast.walk(ast.parse(EVERY_NAME.read_text())))
    used = {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    assert set(mg.__all__) - used - {"ops"} == set()


def checked(tool: str, environment: Path, folder: Path) -> dict[str, set[int]]:
    """Lines with an error by file, as a checker finds them that knows the environment and nothing else."""
    interpreter = str(environment / "bin" / "python")
    if tool == "mypy":
        command = ["-m", "mypy", "--python-executable", interpreter, "--cache-dir", str(folder / "cache"), str(folder)]
    else:
        command = ["-m", tool, "--pythonpath", interpreter, "--level", "error", str(folder)]
    config = '{"typeCheckingMode": "standard"}'
    (folder / "pyrightconfig.json").write_text(config)
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, set[int]] = {}
    for file, line in re.findall(r"([\w.-]+\.py):(\d+)(?::\d+)?(?: -|:) error", done.stdout):
        found.setdefault(file, set()).add(int(line))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["basedpyright", "mypy"])
def test_checkers_resolve_the_install_and_find_only_mistakes(tool: str, environment: Path, tmp_path: Path) -> None:
    (tmp_path / "every_name.py").write_text(EVERY_NAME.read_text())
    page = (ROOT / "README.md").read_text()
    (tmp_path / "readme.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    (tmp_path / "wrong.py").write_text(WRONG)
    lines = {i for i, line in enumerate(WRONG.splitlines(), 1) if line and "import" not in line and "def" not in line}
    assert checked(tool, environment, tmp_path) == {"wrong.py": lines}


@pytest.mark.parametrize("name", ops.__all__)
def test_help_shows_the_signature_of_an_op(name: str) -> None:
    function = getattr(ops, name)
    signature = inspect.signature(function)
    shown = pydoc.plain(pydoc.render_doc(function))
    assert f"{function.__name__}{signature}" in shown
    assert inspect.getdoc(function).splitlines()[0] in shown  # type: ignore[union-attr]
    if name in OPS or name.strip("_") in OPS:
        attributes = OPS[function.op.name].signature.attributes
        keyword = {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
        assert keyword == attributes
        assert all(p.annotation is not p.empty for p in signature.parameters.values())
        assert (function.__name__, function.__module__) == (function.op.name, type(function.op).__module__)


def test_help_of_attention_names_types_and_defaults() -> None:
    text = str(inspect.signature(ops.attention))
    assert text.startswith("(q: Value, k: Value, v: Value, bias: Value | None = None, mask: Value | None = None,")
    assert text.endswith("*, causal: bool = False, window: int | None = None, scale: float | None = None, "
                         "softcap: float | None = None) -> Value")  # fmt: skip
    assert str(inspect.signature(ops.where)) == "(condition: Value | bool, x: Value | float, y: Value | float) -> Value"
    assert str(inspect.signature(ops.topk)) == "(x: Value, *, k: int | Dim) -> tuple[Value, Value]"
    assert "softmax(x: Value, *, axis: int = -1) -> Value" in pydoc.plain(pydoc.render_doc(ops))
    assert dir(mg) == sorted([*mg.__all__, "__version__"])
