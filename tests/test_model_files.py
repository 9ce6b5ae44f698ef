"""Models in Python files: neighbours, names, mistakes as one message, and the file that a checkpoint keeps."""

from __future__ import annotations

import json
import sys
import typing
from collections.abc import Callable
from pathlib import Path

import monograph as mg
import pytest
from command_line import call
from monograph.ir.errors import ConfigError, MonographError

HEAD = """import monograph as mg
from monograph import ops, Value

class Cfg(mg.Config):
    vocab: int = 40
    dim: int = 16
    heads: int = 2

"""
MODEL = """@mg.model
def gpt(m: mg.Scope, c: Cfg, input_ids: Value, attention_mask: Value):
    x = m.embed("wte", input_ids, c.vocab, c.dim)
    q, k, v = (m.linear(n, x, c.dim).split_heads(c.heads) for n in "qkv")
    x = x + m.linear("o", ops.attention(q, k, v, causal=True, mask=mg.key_mask(attention_mask)).merge_heads(), c.dim)
    return m.linear("head", x, c.vocab)
"""
LAST = '    return m.linear("head", x, c.vocab)\n'
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(text: str, name: str = "gpt.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return put


def test_a_file_imports_its_neighbours_and_nothing_else_sees_them(write: Write) -> None:
    """Two files of one name in two folders, each with a neighbour of the same name, one of them imported late."""
    before, path = dict(sys.modules), list(sys.path)
    for folder, dim in (("a", 16), ("b", 24)):
        write(f"from parts.sizes import DIM\nassert DIM == {dim}\nEPS = 1e-5", f"{folder}/blocks.py")
        write(f"DIM = {dim}", f"{folder}/parts/sizes.py")
        write("import blocks\nEPS = blocks.EPS", f"{folder}/late.py")
        body = HEAD.replace("dim: int = 16", "dim: int = DIM").replace(
            "import mono", "from blocks import DIM\nimport mono", 1
        )
        body += MODEL.replace(LAST, f'    from late import EPS\n    x = m.rms_norm("norm", x, EPS)\n{LAST}')
        write(body, f"{folder}/gpt.py")
    root = write("", "x").parent
    models = [mg.load(root / folder / "gpt.py") for folder in ("a", "b")]
    for model, dim in zip([*models, models[0]], (16, 24, 16), strict=True):
        assert model.graph().params["wte.weight"].shape == (40, dim)
    assert not {"blocks", "late", "parts", "gpt"} & {*sys.modules}
    assert {k: m for k, m in sys.modules.items() if k in before} == before
    assert sys.path == path
    assert not list(root.rglob("__pycache__"))


def test_relative_imports_and_annotations_as_texts_work(write: Write) -> None:
    write("from __future__ import annotations\nfrom typing import Literal\nimport monograph as mg\n"
          "class Cfg(mg.Config):\n    dim: int = 8\n    kind: Literal['a', 'b'] = 'a'\n", "settings.py")  # fmt: skip
    text = "from __future__ import annotations\nfrom .settings import Cfg\n" + HEAD.partition("class")[0]
    text += '@mg.model\ndef gpt(m: mg.Scope, c: Cfg, input_ids: Value):\n    return m.embed("e", input_ids, 9, c.dim)\n'
    model = mg.load(write(text))
    assert model.family is not None
    assert model.family(kind="b").graph().params["e.weight"].shape == (9, 8)
    with pytest.raises(MonographError, match="kind is 'c'"):
        model.family(kind="c")


def test_an_op_of_a_file_may_be_read_twice(write: Write) -> None:
    op = (
        "from monograph.ir import Op, op\n"
        "class TwiceOfMine(Op):\n"
        '    """2 x"""\n'
        "    elementwise = True\n"
        "    def infer(self, x: Value):\n        return x.type\n"
        "    def body(self, x: Value) -> Value:\n        return x + x\n"
        "twice = op(TwiceOfMine)\n"
    )
    text = HEAD + op + MODEL.replace(LAST, f"    x = twice(x)\n{LAST}")
    for name in ("a/gpt.py", "b/gpt.py", "a/gpt.py"):
        assert mg.load(write(text, name)).graph().counts()["twice_of_mine"] == 1


def wrong(line: str, text: str) -> typing.Any:
    """A model with a line in place of its last one, and what the message must say."""
    return pytest.param(HEAD + MODEL.replace(LAST, f"    {line}\n"), line, text, id=line[:40])


MISTAKES = [
    wrong("return m.linear('head', y, c.vocab)", "NameError: name 'y' is not defined"),
    wrong("return ops.sofmax(x)", "'sofmax', did you mean 'softmax'?"),
    wrong("return m.linnear('head', x, 3)", "has no attribute 'linnear', did you mean 'linear'?"),
    wrong("return x / (c.dim - 16)[0]", "TypeError: 'int' object is not subscriptable"),
    wrong("return x * (1 / (c.dim - 16))", "ZeroDivisionError: "),
    wrong("return [x][1]", "IndexError: list index out of range"),
    wrong("return {}['logits']", "KeyError: there is no 'logits'"),
    wrong("import numpi; return x", "ModuleNotFoundError: No module named 'numpi', did you mean 'numpy'?"),
    wrong("raise SystemError", "SystemError"),
    wrong("return m.linear('head', x, c.vocabulary)", "has no attribute 'vocabulary', did you mean 'vocab'?"),
    wrong("return ops.matmul(x, x)", "matmul: "),
]


@pytest.mark.parametrize(("text", "line", "message"), MISTAKES)
def test_an_exception_in_a_function_is_one_message(
    write: Write, monkeypatch: pytest.MonkeyPatch, text: str, line: str, message: str
) -> None:
    monkeypatch.setenv("MONOGRAPH_DEBUG", "")  # --debug sets it for the rest of the process.
    path = write(text)
    shown = call("show", path, code=1).output
    assert message in shown
    assert "gpt.py:14" in shown
    assert "Traceback" not in shown
    assert len(shown.splitlines()) <= 5
    if "matmul" not in message:
        assert line in shown
    assert "Traceback" in call("show", path, "--debug", code=1).output


OUTSIDE = {
    "nothing": (HEAD + MODEL.replace("    return", "    y ="), "gpt returns nothing as logits"),
    "list": (HEAD + MODEL.replace(LAST, "    return [x]\n"), "gpt returns a list as logits"),
    "tuple": (HEAD + MODEL.replace(LAST, "    return x, x\n"), "gpt.py:10: gpt returns a tuple as logits"),
    "number": (HEAD + MODEL.replace(LAST, "    return {'logits': 3}\n"), "gpt.py:10: gpt returns a int as logits"),
    "names": (HEAD + MODEL.replace(LAST, "    return {'logit': x}\n"), "did you mean 'logit'?"),
    "empty": (HEAD + MODEL.replace(LAST, "    return {}\n"), "gpt.py:10: gpt gives nothing, but the output"),
    "syntax": (HEAD + MODEL.replace("c.dim)\n", "c.dim\n", 1), "SyntaxError: '(' was never closed"),
    "indent": (HEAD + MODEL.replace("    x = m", "  x = m", 1), "IndentationError: "),
    "import": ("import numpyy\n" + HEAD + MODEL, "gpt.py:1: ModuleNotFoundError: No module named 'numpyy'"),
    "exit": (HEAD + "import sys\nsys.exit(3)\n" + MODEL, "gpt.py:10: sys.exit(3) is called"),
    "raise": (HEAD + "raise ValueError('no')\n", "gpt.py:9: ValueError: no"),
    "annotation": (HEAD + MODEL.replace("c: Cfg", "c: int"), "gpt: annotate 'c' with a subclass of Config"),
    "unknown annotation": (HEAD + MODEL.replace("c: Cfg", "c: Confg"), "NameError: name 'Confg' is not defined"),
    "no config": (HEAD + "@mg.model\ndef gpt(m):\n    return m\n", "gpt.py:10: gpt: takes 1 parameters"),
    "input": (HEAD + MODEL.replace("input_ids:", "input_idz:"), "'input_idz', did you mean 'input_ids'?"),
    "task": (HEAD + MODEL.replace("@mg.model", "@mg.model(task='causal')"), "gpt.py:9: no task is called 'causal'"),
    "default": (HEAD.replace("int = 40", "list = []") + MODEL, "ValueError: mutable default"),
    "field": (HEAD.replace("int = 40", "int") + MODEL, "vocab is missing"),
    "none": (HEAD, "defines no model"),
    "two": (HEAD + MODEL + MODEL.replace("gpt", "other"), "has 2 models: gpt, other"),
    "recursion": (HEAD + MODEL.replace(LAST, "    return gpt.function(m, c, input_ids, input_ids)\n"), "calls itself"),
    "trains": (HEAD + MODEL + "mg.train(gpt(), mg.Corpus.of('a b c ' * 999), steps=1)\n", "while a model is read"),
    "null": (HEAD + "x = '\0'\n" + MODEL, "null bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_mistake_in_a_file_is_one_message(write: Write, name: str) -> None:
    text, message = OUTSIDE[name]
    shown = call("show", write(text), code=1).output
    assert message in shown
    assert "gpt.py" in shown
    assert "Traceback" not in shown
    assert len(shown.splitlines()) <= 5


def test_a_tensor_function_on_a_value_says_what_to_use(write: Write) -> None:
    path = write(HEAD + MODEL.replace(LAST, "    import torch\n    return torch.relu(x)\n"))
    shown = call("show", path, code=1).output
    assert "gpt.py:15: " in shown
    assert "use ops.relu" in shown


def test_a_mistake_in_a_neighbour_names_the_neighbour(write: Write) -> None:
    write("def f(x):\n    return x.nothing\n", "blocks.py")
    shown = call(
        "show", write("from blocks import f\n" + HEAD + MODEL.replace(LAST, "    return f(x)\n")), code=1
    ).output
    assert "blocks.py:2: AttributeError" in shown
    write("def f(x:\n", "blocks.py")
    assert "blocks.py:1: SyntaxError" in call("show", write("from blocks import f\n" + HEAD + MODEL), code=1).output


def test_a_file_of_two_models_is_asked_for_one(write: Write) -> None:
    path = write(HEAD + MODEL + MODEL.replace("gpt", "other").replace("x = x +", "x ="))
    assert "say which: gpt.py:gpt, gpt.py:other" in call("show", path, code=1).output
    assert "graph other" in call("show", f"{path}:other").output
    assert "no model called 'othr', did you mean 'other'?" in call("show", f"{path}:othr", code=1).output
    assert "there is no such file" in call("show", path.with_name("no.py"), code=1).output
    chosen = write(path.read_text() + "model = other(dim=32)\n", "chosen.py")
    assert mg.load(chosen).graph().params["wte.weight"].shape == (40, 32)


def test_random_weights_try_an_architecture(write: Write, tmp_path: Path) -> None:
    path = write(HEAD + MODEL)
    assert "--random" in call("verify", path, code=1).output
    assert "are within the tolerance" in call("verify", path, "--random", "--no-torch").output
    assert "are within" in call("verify", "--random", "7", path, "--no-torch").output
    call("build", path, tmp_path / "out", "--random=3", "--check")
    family = mg.load(path).family
    assert family is not None
    models = [mg.init(family, 3), mg.init(family(), 3), mg.init(family, 4), mg.init(family, 3, dim=32)]
    arrays = [m.weights.numpy("wte.weight") for m in models if m.weights is not None]
    assert (arrays[0] == arrays[1]).all()
    assert (arrays[0] != arrays[2]).any()
    assert arrays[3].shape == (40, 32)
    assert json.loads(call("show", path, "--random", "--json").stdout)["nodes"] > 0


@pytest.mark.parametrize("given", [None, 3, True, {"a": 1}, [1], object(), mg.Graph("g")])
@pytest.mark.parametrize("what", ["load", "export", "build", "verify", "bench", "to_torch", "train", "init"])
def test_what_is_no_model_is_said(what: str, given: object, tmp_path: Path) -> None:
    more = {"export": [tmp_path], "train": [mg.Corpus]}.get(what, [])
    with pytest.raises(MonographError, match=f"{what} got .*, expected a") as caught:
        getattr(mg, what)(given, *more)
    assert isinstance(caught.value, TypeError)


def test_a_module_and_a_family_are_said_with_what_to_do(write: Write) -> None:
    import torch

    with pytest.raises(TypeError, match=r"a torch module \(Linear\)"):
        mg.build(torch.nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]
    family = mg.load(write(HEAD + MODEL)).family
    with pytest.raises(TypeError, match=r"call it with its config: gpt\(\.\.\.\)"):
        mg.build(family)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"mg\.load\('smollm2'\)"):
        mg.to_torch("smollm2")  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model in a file with a neighbour, both of which are gone after it."""
    place = tmp_path_factory.mktemp("own")
    (place / "sizes.py").write_text("DIM = 16\n")
    (place / "gpt.py").write_text(
        HEAD.replace("int = 16", "int = DIM").replace("from", "from sizes import DIM\nfrom", 1) + MODEL
    )
    (place / "text.txt").write_text("the cat sat on the mat and looked at the dog\n\n" * 300)
    (place / "recipe.toml").write_text(
        '[model]\nfamily = "gpt.py:gpt"\nconfig = { vocab = 300, dim = 32 }\n[data]\npaths = ["text.txt"]\n'
        "[train]\nsteps = 2\nbatch = 2\nlength = 8\n"
    )
    call("train", place / "recipe.toml", place / "run", "--json")
    for file in ("gpt.py", "sizes.py"):
        (place / file).unlink()
    moved = tmp_path_factory.mktemp("moved") / "run"
    (place / "run").rename(moved)
    return moved


def test_a_run_carries_its_own_model(run: Path, tmp_path: Path) -> None:
    kept = json.loads((run / "model_source.json").read_text())
    assert [*kept["files"]] == ["gpt.py", "sizes.py"]
    call("build", run, tmp_path / "built")
    assert (tmp_path / "built" / "model_source.json").read_text() == (run / "model_source.json").read_text()
    assert "are within" in call("verify", run, tmp_path / "built").output
    assert "graph gpt" in call("show", run).output
    call("explain", run)
    call("optimize", run)
    call("run", run, "the cat", "--max-new-tokens", 2)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "the cat {i}", "completion": " sat"}}\n' for i in range(6)))
    settings = ("-d", rows, "--steps", 1, "--batch", 2, "--length", 8)
    call("finetune", run, tmp_path / "adapter", "--lora", *settings)
    call("merge", run, tmp_path / "adapter", tmp_path / "merged")
    assert "are within" in call("verify", tmp_path / "merged", "--no-torch").output
    assert mg.load(run).name == "gpt"


def test_a_kept_file_that_was_changed_is_not_run(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "model_source.json"):
        (folder / name).write_bytes((run / name).read_bytes())
    kept = json.loads((folder / "model_source.json").read_text())
    kept["files"]["sizes.py"]["text"] += "import os\n"
    (folder / "model_source.json").write_text(json.dumps(kept))
    assert "sizes.py is not the text that was trained" in call("show", folder, code=1).output
    for damage in (
        "",
        "[]",
        "[" * 100_000,
        '{"format": 1}',
        json.dumps({**kept, "file": "no.py"}),
        json.dumps({**kept, "files": {"gpt.py": 1}}),
    ):
        (folder / "model_source.json").write_text(damage)
        assert "model_source.json" in call("show", folder, code=1).output
    (folder / "model_source.json").unlink()
    assert "--family FILE.py" in call("show", folder, code=1).output


def test_a_model_file_of_a_stranger_is_not_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONOGRAPH_CACHE", str(tmp_path / "of_another_user"))
    with pytest.raises(ConfigError, match="holds the Python of a model that was not written here") as e:
        mg.load(run)
    assert "MONOGRAPH_TRUST=1" in e.value.hint
    monkeypatch.setenv("MONOGRAPH_TRUST", "1")
    assert mg.load(run).name == "gpt"
    call("build", run, tmp_path / "built")
    monkeypatch.delenv("MONOGRAPH_TRUST")
    assert mg.load(run).name == "gpt", "what a build of this user kept is theirs"


def test_a_checkpoint_takes_the_file_that_is_given(run: Path, tmp_path: Path, write: Write) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((run / name).read_bytes())
    file = write(HEAD + MODEL)
    for given in (file, f"{file}:gpt"):
        assert "are within" in call("verify", folder, "--no-torch", "--family", given).output
    assert "expected FILE.py" in call("show", folder, "--family", "gpt", code=1).output
    other = write(HEAD + MODEL.replace("gpt", "other"), "other.py")
    assert "has model_type 'gpt', not 'other'" in call("show", folder, "--family", other, code=1).output


def test_a_script_that_trains_is_kept_and_read_without_training(write: Write, tmp_path: Path) -> None:
    """The family stands in __main__ there; its file, read again, must not begin another run."""
    import subprocess

    body = "mg.train(gpt(vocab=300), mg.Corpus.of('the cat sat. ' * 400), steps=1, batch=1, length=8, folder='run')\n"
    write("DIM = 16\n", "sizes.py")
    script = "from sizes import DIM\n" + HEAD.replace("int = 16", "int = DIM") + MODEL
    file = write(f'{script}if __name__ == "__main__":\n    {body}', "script.py")
    subprocess.run([sys.executable, file], cwd=tmp_path, check=True, capture_output=True)
    assert "graph gpt" in call("show", tmp_path / "run").output
    kept = json.loads((tmp_path / "run" / "model_source.json").read_text())
    assert [*kept["files"]] == ["script.py", "sizes.py"]
    unguarded = write(f"{script}{body}", "unguarded.py")
    shown = call("show", unguarded, code=1).output
    assert "unguarded.py:16: mg.train is called while a model is read" in shown
    assert "__main__" in shown
