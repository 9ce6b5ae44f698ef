"""The comparison of what came before with the Transformer: same data for all, costs by the IR, table, JSON and plot."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from monograph.cli import app
from monograph.commands.compare import polynomial
from monograph.frontends.load import load
from monograph.ir.cost import flops_of
from monograph.ir.errors import ConfigError
from monograph.training.baselines.compare import (
    FAMILIES,
    NAMES,
    Result,
    Settings,
    compare,
    costs,
    parameters_of,
    plot,
    sized,
    table_loss,
)
from monograph.training.baselines.ngram import NGram
from monograph.training.corpus import Corpus, python_topics
from monograph.training.progress import Step
from typer.testing import CliRunner

pytestmark = pytest.mark.slow

TINY = Settings(steps=6, batch=4, length=16, parameters=30_000, order=3, contexts=(8, 16, 32))


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.of(python_topics()[:40_000], vocab=300)


@pytest.fixture(scope="module")
def run(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Result], Path, dict[str, list[Step]]]:
    folder = tmp_path_factory.mktemp("models")
    seen: dict[str, list[Step]] = {}
    results = compare(
        corpus,
        settings=TINY,
        folder=folder,
        progress=False,
        observe=lambda name, step: seen.setdefault(name, []).append(step),
    )
    return results, folder, seen


def test_every_model_is_trained_and_measured_on_the_same(run: tuple, corpus: Corpus) -> None:
    results, _, seen = run
    assert [r.name for r in results] == list(NAMES) == ["ngram", "rnn", "lstm", "gru", "transformer"]
    for r in results:
        assert r.perplexity == math.exp(r.held_out) and r.tokens_per_second > 0 and r.seconds > 0
        assert [p.context for p in r.points] == [8, 16, 32]
        assert all(p.seconds > 0 and p.state_bytes > 0 for p in r.points)
    for r in results[1:]:
        assert abs(r.entries - 30_000) < 0.5 * 30_000
        assert [x.step for x in seen[r.name]] == [1, 2, 3, 4, 5, 6]
        assert r.curve == [(64 * x.step, x.held_out) for x in seen[r.name]] and r.curve[-1][1] == r.held_out
        assert r.held_out < math.log(corpus.vocab), "six steps are enough to beat a uniform guess"


def test_the_table_is_scored_on_the_labels_and_contexts_of_the_others(corpus: Corpus) -> None:
    """Every held-out token but the first, each with the tokens of its own window before it."""
    model = NGram.fit(corpus.train, corpus.vocab, 3)
    ids, total = corpus.held_out.astype(np.int64), 0.0
    for start in range(0, len(ids) - 1, 16):
        window = ids[start : start + 17]
        total += sum(-math.log(model.probabilities(window[:i])[window[i]]) for i in range(1, len(window)))
    assert abs(table_loss(model, corpus, 4, 16) / (total / (len(ids) - 1)) - 1) < 1e-12


def test_cost_is_linear_for_recurrences_and_quadratic_for_attention(run: tuple) -> None:
    for r in run[0]:
        flops = [p.flops for p in r.points]
        second = (flops[2] - flops[1]) / 16 - (flops[1] - flops[0]) / 8
        state, step = [p.state_bytes for p in r.points], [p.step_flops for p in r.points]
        if r.name == "transformer":
            assert "S*S" in r.cost and second > 0 and step[0] < step[1] < step[2]
            assert state[1] == 2 * state[0] and state[2] == 4 * state[0]
        else:
            assert "S*S" not in r.cost and second == 0 and len(set(step)) == 1 and len(set(state)) == 1
            assert flops[0] == 8 * step[0], f"{r.name}: a token costs the same alone and in a row"


def test_costs_count_what_the_model_is_made_of() -> None:
    """Two flops for each weight and token, and what stands in the cache or the state."""
    for name in FAMILIES:
        model = sized(name, 300, 30_000)
        graph, (point,) = model.graph(), costs(model, [4])
        matrices = sum(v.type.elements for v in graph.params.values() if len(v.shape) == 2)
        assert 1.0 <= point.step_flops / (2 * matrices) < 1.2, name
        width = model.config.dim
        kept = {"rnn": 2, "lstm": 4, "gru": 2, "transformer": 2 * 4 * 4}[name]
        assert point.state_bytes == kept * width * 4, name


def test_saved_models_are_models_of_their_own(run: tuple, corpus: Corpus) -> None:
    results, folder, _ = run
    table = NGram.load(folder / "ngram")
    assert abs(table_loss(table, corpus, 4, 16) - results[0].held_out) < 1e-12
    for r in results[1:]:
        model = load(folder / r.name)
        assert model.name == FAMILIES[r.name][0] and parameters_of(model.graph()) == r.entries
        assert str(flops_of(model.graph(), B=1)) == r.cost
        assert model.tokenizer.size == corpus.vocab


def test_plot_is_a_picture_written_whole(run: tuple, tmp_path: Path) -> None:
    file = plot(run[0], tmp_path / "sub" / "compare.png")
    data = file.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND" and len(data) > 20_000
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    assert width > 1000 and height > 700
    assert [p.name for p in file.parent.iterdir()] == ["compare.png"]


def test_command_prints_a_table_or_json(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(python_topics()[:30_000])
    given = ["compare", "--text", str(text), "--steps", "2", "--batch", "2", "--length", "8", "--vocab", "280"]
    given += ["--parameters", "20000", "--order", "2", "--contexts", "8,16", "--plot", str(tmp_path / "p.png")]
    shown = CliRunner().invoke(app, given)
    assert shown.exit_code == 0, shown.output
    for word in (*NAMES, "perplexity", "tokens/s", "flops of S tokens", "S²", "state kept to go on"):
        assert word in shown.stdout
    told = CliRunner().invoke(app, [*given, "--models", "ngram,gru", "--json"])
    found = json.loads(told.stdout)
    assert [r["name"] for r in found["results"]] == ["ngram", "gru"]
    assert found["results"][1]["perplexity"] == pytest.approx(math.exp(found["results"][1]["held_out"]))
    assert [p["context"] for p in found["results"][1]["points"]] == [8, 16]
    assert (tmp_path / "p.png").exists() and found["vocab"] == 280
    row = next(line.split() for line in shown.stdout.splitlines() if line.split()[:1] == ["gru"])
    assert float(row[2]) == pytest.approx(found["results"][1]["held_out"], abs=1e-3), "seeds decide all but the clock"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--models", "ngram,lstn"], "no model is called 'lstn', did you mean 'lstm'"),
        (["--contexts", "8,x"], "--contexts is '8,x', expected numbers"),
        (["--contexts", "0"], "contexts are [0]"),
        (["--text", "missing.txt"], "missing.txt: there is no such file"),
        (["--models", "ngram,rnn", "--parameters", "100"], "not 100"),
    ],
)
def test_bad_requests_end_before_anything_is_written(extra: list[str], message: str, tmp_path: Path) -> None:
    target = tmp_path / "p.png"
    given = ["compare", "--steps", "1", "--vocab", "260", "--plot", str(target), *extra]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 1 and message in result.output.replace("\n", " ")
    assert not target.exists()


def test_a_corpus_without_held_out_part_cannot_be_compared() -> None:
    corpus = Corpus.of("one two three four five six " * 200, vocab=260, held_out=0.0)
    with pytest.raises(ConfigError, match="the held-out part has 0 tokens"):
        compare(corpus, ["gru", "ngram"], TINY, progress=False)


def test_widths_meet_the_number_of_parameters() -> None:
    for name in FAMILIES:
        small, large = (sized(name, 1024, n) for n in (300_000, 3_000_000))
        assert abs(parameters_of(large.graph()) / 3_000_000 - 1) < 0.15
        assert small.config.dim < large.config.dim


def test_polynomials_are_written_for_people() -> None:
    assert polynomial("1088*S*S+540000*S") == "1,088 S² + 5.40e+05 S"
    assert polynomial("4*S") == "4 S" and polynomial("S*S+7") == "1 S² + 7" and polynomial("0") == "0"
