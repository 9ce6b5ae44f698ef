"""The seven models of examples/models: each one short file that all backends agree on, and that trains as it says."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import monograph as mg
import pytest
from monograph.passes.differential import Case

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "examples" / "models").glob("*.py"))
CASES = (Case("all-ones", 1), Case("left-padded", 2), Case("holed", 2, past=4))
SETTINGS: dict[str, Any] = {
    "steps": 3,
    "batch": 4,
    "length": 12,
    "progress": False,
    "device": "cpu",
    "learning_rate": 1e-2,
}
TEXT = "".join(f"Line {i}: the cat sat on mat {i % 7}.\n\n" for i in range(120))

pytestmark = pytest.mark.slow


def data_of(file: Path) -> Any:
    """What a model trains on."""
    made_up = runpy.run_path(str(file)).get("made_up")
    if made_up is not None:
        return mg.Arrays.of(made_up(24))
    if file.stem == "t5_like":
        return mg.Pairs.of([(f"the cat {i}", f"le chat {i}") for i in range(60)], kind="byte-bpe", vocab=270)
    return mg.Corpus.of(TEXT, vocab=270)


def test_there_are_seven_short_ones() -> None:
    assert len(FILES) == 7
    assert all(len(file.read_text().splitlines()) <= 75 for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=[f.stem for f in FILES])
def test_a_model_in_one_file_trains_and_every_way_to_run_it_agrees(file: Path) -> None:
    losses: list[float] = []
    model = mg.train(mg.load(file), data_of(file), observe=lambda s: losses.append(s.loss), **SETTINGS)
    assert min(losses[1:]) < losses[0]
    table = mg.verify(model, cases=CASES)
    assert table.passed
    assert max(r.difference for r in table.rows) < 1e-5
    assert {r.output for r in table.rows} == set(model.graph().outputs)


def test_what_they_are_said_to_be() -> None:
    graphs = {file.stem: mg.load(file).graph() for file in FILES}
    counts = {name: graph.counts() for name, graph in graphs.items()}
    assert counts["mixture_of_experts"]["moe"] == 2
    assert counts["vision"]["conv2d"] == 1
    assert counts["own_op"]["squared_relu"] == 2
    assert set(graphs["two_outputs"].outputs) == {"forecast", "alarm_score"}
    assert set(graphs["two_outputs"].inputs) == {"readings"}
    windows = [n.attributes["window"] for n in graphs["gemma_like"] if n.op.name == "attention"]
    assert windows == [8, None]


def test_one_goes_through_the_whole_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As benchmarks/own_models.py takes all of them."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    import own_models

    found = own_models.through(ROOT / "examples" / "models" / "own_op.py", tmp_path, steps=3)
    assert found["worst error"] < 1e-5
    assert found["commands"] == 11
