"""Early stop: a run with patience ends with its best weights, whatever happened on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.ir.errors import ConfigError
from monograph.training.adapters import Lora
from monograph.training.corpus import Corpus
from monograph.training.finetune import finetune
from monograph.training.loop import train
from monograph.training.progress import Step
from training_runs import (
    SETTINGS,
    TEXT,
    Killed,
    arrays,
    arrays_of,
    assert_same_weights,
    held_out_loss,
    numbers,
    run,
    tiny,
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.of(TEXT, vocab=300)


@pytest.fixture(scope="module")
def overfit(corpus: Corpus) -> Corpus:
    """A held-out part that training does not help with for long: the same tokens in another order."""
    ids = np.random.default_rng(0).permutation(np.array(corpus.train))[:200]
    return replace(corpus, held_out=ids)


PATIENT: dict[str, Any] = {"steps": 60, "evaluate_every": 3, "patience": 3, "learning_rate": 2e-2, "ema": 0.5}


@pytest.fixture(scope="module")
def best(overfit: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Step]]:
    folder = tmp_path_factory.mktemp("best")
    return folder, run(tiny(), overfit, folder=folder, **PATIENT)


def lowest(history: list[Step]) -> tuple[float, int]:
    return min((s.held_out, s.step) for s in history if s.held_out is not None)


def test_a_run_ends_when_it_got_no_better_and_keeps_the_best(
    overfit: Corpus, best: tuple[Path, list[Step]], tmp_path: Path
) -> None:
    folder, history = best
    loss, step = lowest(history)
    assert history[-1].step == step + 9 < 60, "three measurements after the best one"
    assert held_out_loss(arrays(folder), overfit) == pytest.approx(loss, abs=1e-5)
    assert held_out_loss(arrays(folder), overfit) < (history[-1].held_out or 0) - 0.01
    whole = run(tiny(), overfit, folder=tmp_path, **{**PATIENT, "patience": 0, "steps": 60}, until=step)
    assert numbers(whole) == numbers(history)[:step]
    model = train(tiny(), overfit, **{**SETTINGS, **PATIENT})
    for name, array in arrays_of(model).items():
        np.testing.assert_array_equal(array, arrays(folder)[name], err_msg="in memory as in a folder")


@pytest.mark.parametrize(("every", "past"), [(1, 0), (3, 0), (3, 1), (4, 5), (7, -1), (7, 5), (50, 1)])
def test_early_stop_survives_a_kill(
    overfit: Corpus, best: tuple[Path, list[Step]], tmp_path: Path, every: int, past: int
) -> None:
    """Whether the kill comes before or after the best measurement, and wherever the checkpoints lie."""
    folder, history = best
    changes = {**PATIENT, "checkpoint_every": every}
    run(tiny(), overfit, folder=tmp_path, until=max(lowest(history)[1] + past, 1), **changes)
    again = run(tiny(), overfit, folder=tmp_path, resume=True, **changes)
    assert numbers(again) == numbers(history)[again[0].step - 1 :]
    assert_same_weights(tmp_path, folder)
    assert run(tiny(), overfit, folder=tmp_path, resume=True, **changes) == [], "it stays ended"
    assert_same_weights(tmp_path, folder)


def test_early_stop_of_an_adapter_keeps_the_best_one_whatever_was_measured_since(
    overfit: Corpus, tmp_path: Path
) -> None:
    base = train(tiny(), overfit, steps=6, **SETTINGS)
    given = {**SETTINGS, "steps": 40, "evaluate_every": 2, "patience": 2, "learning_rate": 5e-2}
    given |= {"lora": Lora(rank=2), "metrics": lambda model: {"norm": float(np.abs(arrays_of(model)[PLACE]).sum())}}
    history: list[Step] = []

    def kill(step: Step) -> None:
        if step.step == history[-1].step - 1:
            raise Killed

    whole = finetune(base, overfit, folder=tmp_path / "a", observe=history.append, **given)
    loss, step = lowest(history)
    assert history[-1].step == step + 4 < 40
    assert whole.adapter is not None
    assert held_out_loss(arrays_of(whole.model), overfit) == pytest.approx(loss, abs=1e-5)
    kept = next(s.metrics for s in history if s.step == step)
    assert kept and kept["norm"] == pytest.approx(float(np.abs(arrays_of(whole.model)[PLACE]).sum()), rel=1e-5)
    with pytest.raises(Killed):
        finetune(base, overfit, folder=tmp_path / "b", observe=kill, **given)
    finetune(base, overfit, folder=tmp_path / "b", resume=True, **given)
    saved = [(tmp_path / x / "adapter_model.safetensors").read_bytes() for x in "ab"]
    assert saved[0] == saved[1]


PLACE = "model.layers.0.self_attn.q_proj.weight"


def test_patience_that_a_run_is_resumed_with_counts_from_there(
    overfit: Corpus, best: tuple[Path, list[Step]], tmp_path: Path
) -> None:
    """The weights of the best measurement before were not kept."""
    run(tiny(), overfit, folder=tmp_path, until=lowest(best[1])[1] + 9, **{**PATIENT, "patience": 0})
    again = run(tiny(), overfit, folder=tmp_path, resume=True, **PATIENT)
    loss, step = lowest(again)
    assert again[-1].step == step + 9 < 60
    assert held_out_loss(arrays(tmp_path), overfit) == pytest.approx(loss, abs=1e-5)


def test_patience_needs_something_to_measure(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="patience is 2, but nothing of the data is held out"):
        run(tiny(), replace(corpus, held_out=corpus.held_out[:0]), 4, patience=2)
