"""What was given with a text is measured before the folder is in its place, of builds and of portable exports."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import onnxruntime
import pytest
from command_line import call
from monograph import fidelity
from monograph.data.byte_level import train_tokenizer
from monograph.frontends.dsl import Model
from monograph.frontends.huggingface import save_pretrained
from monograph.ir.errors import ConfigError
from monograph.ir.manifest import check
from monograph.samples import Reader
from test_quantize_build import tiny

pytestmark = pytest.mark.slow
TEXT = mg.python_topics()[:30_000]
ASKED = mg.Quantization("int4", calibrate=TEXT)


def model(family: str = "llama", **fields: Any) -> Model:
    tokenizer = train_tokenizer(TEXT, 300)
    made = tiny(family, vocab=tokenizer.size, **fields)
    made.tokenizer = tokenizer
    return made


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on less text."""
    whole = fidelity.quality
    monkeypatch.setattr(fidelity, "quality", lambda *a, **k: whole(*a, **k, tokens=300, window=64, prompts=2, new=4))


def build(model: Model, folder: Path) -> None:
    mg.build(model, folder, quantize=ASKED).close()


def export(model: Model, folder: Path) -> None:
    mg.export(model, folder, quantize=ASKED)


@pytest.mark.parametrize("write", [build, export])
@pytest.mark.parametrize("older", [False, True])
def test_a_failure_while_measuring_leaves_what_was_there(
    write: Any, older: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    if older:
        mg.build(model(), folder).close()
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} if older else {}

    def fail(built: Any, *rest: Any, **more: Any) -> Any:
        assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == (["out"] if older else [])
        raise MemoryError("none left")

    monkeypatch.setattr(fidelity, "quality", fail)
    with pytest.raises(MemoryError):
        write(model(), folder)
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if older else [])
    assert before == ({p.name: p.stat().st_mtime_ns for p in folder.iterdir()} if older else {})


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("write", [build, export])
def test_what_was_measured_is_in_the_folder_and_its_manifest(write: Any, tmp_path: Path) -> None:
    write(model(), tmp_path / "out")
    said = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert said["perplexity"] > 1 and said["before"] > 1 and said["greedy"] is not None
    assert "quality.json" in json.loads((tmp_path / "out" / "checksums.json").read_text())["files"]
    assert json.loads((tmp_path / "out" / "quantization.json").read_text())["quality"]["rise"] == said["rise"]
    check(tmp_path / "out", every_byte=True)


KILLED = """
import os, signal, sys
import monograph as mg
from monograph import fidelity
fidelity.quality = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
mg.build(mg.load(sys.argv[1]), sys.argv[2], quantize=mg.Quantization("int4", calibrate="a text to read " * 99))
"""


def test_a_kill_while_measuring_leaves_nothing_that_opens(tmp_path: Path) -> None:
    save_pretrained(model(), tmp_path / "source")
    folder = tmp_path / "to" / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "source"), str(folder)], check=False)
    assert done.returncode == -signal.SIGKILL and not folder.exists()
    mg.build(model(), folder).close()
    assert [p.name for p in folder.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "gemma3_text", "mamba2", "mixtral"])
def test_an_export_is_measured_by_an_ordinary_session(family: str, tmp_path: Path) -> None:
    source = model(family)
    mg.export(source, tmp_path / "wide")
    found = mg.quality(tmp_path / "wide", TEXT, against=source, tokens=200, window=50, prompts=2, new=4)
    if found.perplexity is not None:
        assert found.before is not None and abs(found.perplexity / found.before - 1) < 1e-4
        assert found.agreement is not None and found.agreement > 0.99 and (found.divergence or 0) < 1e-5
        assert found.greedy is None if source.task.separated else found.greedy == 1.0
    else:
        assert found.agreement == 1.0 if found.agreement is not None else (found.error or 0) < 1e-4


def test_the_perplexity_of_an_export_is_that_of_its_file(tmp_path: Path) -> None:
    source = model()
    mg.export(source, tmp_path / "out", quantize=mg.Quantization("int4"))
    found = mg.quality(tmp_path / "out", TEXT, against=source, tokens=300, window=64, prompts=0)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    losses: list[float] = []
    for row in Reader.of_model(source).first(TEXT, 300, 64):
        ids = np.array([row])
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(len(row))[None]}
        pasts = [i for i in session.get_inputs() if i.name not in given]
        given |= {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in pasts}
        logits = session.run(["logits"], {i.name: given[i.name] for i in session.get_inputs()})[0][0].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses += (-logs[np.arange(len(row) - 1), row[1:]]).tolist()
    assert found.perplexity is not None and abs(found.perplexity / np.exp(np.mean(losses)) - 1) < 1e-6


def test_an_export_without_its_model_or_for_another_runtime_says_so(tmp_path: Path) -> None:
    source = model()
    mg.export(source, tmp_path / "out")
    with pytest.raises(ConfigError, match="is a portable export, which is measured beside its model"):
        mg.quality(tmp_path / "out", TEXT)
    with pytest.raises(mg.MonographError, match="has neither model"):
        mg.quality(tmp_path, TEXT, against=source)


def test_a_layout_that_cannot_be_measured_is_written_and_says_why(tmp_path: Path) -> None:
    save_pretrained(model("t5"), tmp_path / "source")
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    done = call("build", tmp_path / "source", tmp_path / "out", "--for", "optimum", "--weights", "int4",
                "--calibrate", text)  # fmt: skip
    assert "quality was not measured: holds decoder_model_merged.onnx" in " ".join(done.stdout.split())
    assert not (tmp_path / "out" / "quality.json").exists() and any((tmp_path / "out").iterdir())


# -- what options ask for -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cache", "int8", "--size", "1MB"], "size is 1000000, but weights is empty"),
        (["--prompts", "int8", "--size", "1MB"], "size is 1000000, but weights is empty"),
        (["--prompts", "int8", "--quality", "1%", "--calibrate", "TEXT"], "quality is 0.01, but weights and cache are"),
        (["--cache", "int8", "--quality", "1%"], "needs text: calibrate is None"),
    ],
)
def test_a_budget_beside_something_else_rounds_no_weights(options: list[str], message: str, tmp_path: Path) -> None:
    save_pretrained(model(), tmp_path / "source")
    (tmp_path / "text.txt").write_text(TEXT)
    given = [str(tmp_path / "text.txt") if o == "TEXT" else o for o in options]
    done = call("build", tmp_path / "source", tmp_path / "out", *given, code=1)
    assert message in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def test_quality_beside_a_cache_bounds_the_cache_alone(tmp_path: Path) -> None:
    save_pretrained(model(), tmp_path / "source")
    (tmp_path / "text.txt").write_text(TEXT)
    text = ["--calibrate", tmp_path / "text.txt"]
    done = call("build", tmp_path / "source", tmp_path / "out", "--cache", "int8", "--quality", "50%", *text, "--json")
    assert "quantization" not in json.loads(done.stdout)
    done = call(
        "build", tmp_path / "source", tmp_path / "b", "--cache", "int8", "--quality", "0.0000001%", *text, code=1
    )
    assert "keys and values in 8 bits cost" in done.output


@pytest.mark.parametrize("how", ["same", "float", "int8"])
def test_the_line_of_choices_says_how_prompts_are_read(how: str, tmp_path: Path) -> None:
    save_pretrained(model(), tmp_path / "source")
    done = call("build", tmp_path / "source", tmp_path / "out", "--weights", "int4", "--prompts", how)
    assert f"choices: prompts {how}, as asked; the shipped choices for cpu" in " ".join(done.stdout.split())
    with mg.open(tmp_path / "out") as engine:
        assert engine.session.contract.choices.prompts == how
