"""What people see: completion, notes, progress from the first second on, one display in a notebook."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import monograph as mg
import pytest
from command_line import call
from monograph.assets import ASSETS
from monograph.commands.options import models, pipelines, targets, with_seed
from monograph.training.progress import Display, Step

ROOT = Path(__file__).parent.parent


def complete(words: str) -> list[str]:
    """What a shell offers for the last word."""
    environment = {**os.environ, "_MONOGRAPH_COMPLETE": "complete_bash", "COMP_WORDS": words,
                   "COMP_CWORD": str(len(words.split(" ")) - 1)}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "monograph"], capture_output=True, text=True, env=environment, check=False
    )
    return done.stdout.split()


def test_a_shell_completes_commands_models_and_pipelines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--version" not in call("--version").output
    assert call("--version").output.strip() == mg.__version__
    assert "--install-completion" in call("--help").output
    assert complete("monograph ver") == ["verify"]
    assert complete("monograph show smol") == ["smollm2"]
    assert complete("monograph optimize x --pipeline dec") == ["decode"]
    assert complete("monograph build x y --target cu") == ["cuda"]
    for name in ("gpt.py", "config.json", "text.txt", ".hidden.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    assert {"smollm2", "minilm", "gemma3-270m"} < {*ASSETS}
    assert models("") == [*ASSETS, "config.json", "gpt.py", "run/"]
    assert models("g") == ["gemma3-270m", "gpt.py"]
    assert models(f"{tmp_path}/r") == [f"{tmp_path}/run/"]
    assert models("nowhere/") == []
    assert "decode" in pipelines("d")
    assert targets("") == ["cpu", "cuda", "onnx"]


def test_random_may_stand_alone() -> None:
    for given, found in {
        "m --random": "m --random 0", "--random m": "--random 0 m", "m --random 3 x": "m --random 3 x", "m": "m",
        "m --random=4": "m --random=4", "m --random --json": "m --random 0 --json", "--random -1": "--random -1",
    }.items():  # fmt: skip
        assert with_seed(given.split()) == found.split()


def test_show_says_that_there_are_notes_and_lists_them(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    about = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
             "num_hidden_layers": 1, "num_attention_heads": 4}  # fmt: skip
    config.write_text(json.dumps(about))
    assert "nothing here" not in call("show", config).output
    assert "there is nothing to note" in call("show", config, "--notes").output
    config.write_text(json.dumps({**about, "is_llama_config": True, "unsloth_fixed": True}))
    assert "2 entries change nothing here: --notes says which" in call("show", config).stderr
    said = call("show", config, "--notes").stdout
    assert "is_llama_config = True: " in said
    assert len(said.splitlines()) == 2
    assert len(json.loads(call("show", config, "--notes", "--json").stdout)["notes"]) == 2


def step(number: int, held_out: float | None = None) -> Step:
    return Step(number, 3, 2.0 / number, held_out, 1e-3, 1.0, 100.0, 1.0 * number, 0.0)


def test_a_notebook_has_one_line_that_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every text after the first one goes to the handle that the first one gave."""
    shown: list[tuple[str, str]] = []

    class Handle:
        def update(self, content: dict[str, str], raw: bool) -> None:
            shown.append(("update", content["text/plain"]))

    def display(content: dict[str, str], raw: bool, display_id: bool) -> Handle:
        shown.append(("display", content["text/plain"]))
        return Handle()

    module: Any = ModuleType("IPython")
    module.display = SimpleNamespace(display=display)
    module.get_ipython = lambda: SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", module)
    with Display(3) as screen:
        for i in (1, 2, 3):
            screen.show(step(i, 0.5 if i == 2 else None))
    assert [kind for kind, _ in shown] == ["display", "update", "update"]
    assert "step 3/3" in shown[-1][1]
    assert "measured: step 2/3" in shown[-1][1]
    assert capsys.readouterr().err == ""
    module.get_ipython = lambda: None
    with Display(3) as screen:
        screen.show(step(1, 0.5))
    assert len(shown) == 3
    assert "step 1/3" in capsys.readouterr().err


@pytest.mark.slow
def test_training_says_what_it_does_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n\n" * 400)
    (tmp_path / "recipe.toml").write_text(
        '[model]\nfamily = "llama"\nconfig = { dim = 16, ffn = 16, layers = 1, heads = 2, vocab = 270 }\n'
        '[data]\npaths = ["text.txt"]\n[train]\nsteps = 2\nbatch = 2\nlength = 8\n'
    )
    lines = call("train", tmp_path / "recipe.toml", tmp_path / "run").stderr.splitlines()
    assert lines[:3] == ["loading PyTorch", "reading the data", "preparing the first step"]
    assert lines[3].startswith("step 1/2")


@pytest.mark.slow
def test_a_step_is_never_faster_than_the_peak() -> None:
    import numpy as np
    from monograph.training.speed import Arithmetic

    graph = mg.init(mg.load(ROOT / "examples" / "models" / "own_op.py")).graph()
    arithmetic = Arithmetic(graph)
    batch = {k: np.zeros((2, 8), np.int64) for k in graph.inputs}
    assert arithmetic.share(batch, 1.0) is None
    arithmetic.peak = arithmetic.of(batch) / 2.0
    assert arithmetic.share(batch, 4.0) == pytest.approx(0.5)
    assert arithmetic.share(batch, 1.0) == 1.0
    assert arithmetic.share(batch, 2.0) == pytest.approx(0.5)
