"""What the training loop can do beside plain steps, each against its formula and across a kill and a resume."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monograph.backends.torch.tensors import to_array
from monograph.data.batch import Batch
from monograph.frontends.tokenizer import Tokenizer
from monograph.ir import interpret
from monograph.training.checkpoint import open_checkpoint
from monograph.training.corpus import Corpus
from monograph.training.errors import TrainingError
from monograph.training.log import read_log
from monograph.training.loop import Run, train
from monograph.training.loss import with_loss
from monograph.training.progress import Step
from monograph.training.settings import Settings
from monograph.training.speed import Arithmetic
from training_runs import (
    SETTINGS,
    TEXT,
    arrays,
    arrays_of,
    assert_same_weights,
    dropping,
    held_out_loss,
    numbers,
    run,
    tiny,
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.of(TEXT, vocab=300)


def new_run(corpus: Any, steps: int, folder: Path | None = None, **settings: Any) -> Run:
    given = {k: v for k, v in {**SETTINGS, **settings}.items() if k != "progress"}
    return Run(tiny(), corpus, Settings.of({"steps": steps, **given}), folder)


def weights_of(run: Run) -> dict[str, np.ndarray[Any, Any]]:
    return {k: to_array(p).copy() for k, p in run.learner.module.named_parameters()}


@dataclass(frozen=True)
class Uneven:
    """Rows with different numbers of labels, one of them with none."""

    corpus: Corpus
    task = "causal-lm"

    @property
    def tokenizer(self) -> Tokenizer:
        return self.corpus.tokenizer

    @property
    def vocab(self) -> int:
        return self.corpus.vocab

    @property
    def held_out(self) -> Any:
        return self.corpus.held_out

    def batches(self, batch: int, length: int, seed: int = 0, start: int = 0) -> Iterator[Batch]:
        for number, found in enumerate(self.corpus.batches(batch, length, seed, start), start):
            for row in range(batch):
                found["labels"][row, : (5 * row + 3 * number) % (length + 1)] = -100
            found["labels"][number % batch] = -100
            yield found

    def held_out_batches(self, batch: int, length: int) -> Iterator[Batch]:
        return self.corpus.held_out_batches(batch, length)


# -- accumulation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_give_the_gradient_of_the_whole(corpus: Corpus, parts: int) -> None:
    """The mean over all labels of the batch, not the mean of the means of its parts; checked in f64."""
    batch = next(Uneven(corpus).batches(4, 16))
    counts = [int((row != -100).sum()) for row in batch["labels"]]
    assert len(set(counts)) == 4 and 0 in counts
    found: list[tuple[float, dict[str, np.ndarray[Any, Any]]]] = []
    for accumulate in (1, parts):
        one = new_run(Uneven(corpus), 1, accumulate=accumulate)
        one.learner.module.double()
        loss = one.backward(batch)
        found.append((loss, {k: to_array(p.grad).copy() for k, p in one.learner.module.named_parameters()}))
    (whole, gradients), (mean, sums) = found
    assert mean == pytest.approx(whole, rel=1e-12)
    for name, gradient in gradients.items():
        assert gradient.dtype == np.float64
        np.testing.assert_allclose(sums[name], gradient, rtol=0, atol=1e-12 * np.abs(gradient).max(), err_msg=name)


def test_accumulation_changes_no_course(corpus: Corpus) -> None:
    curves = [[s.loss for s in run(tiny(), Uneven(corpus), 8, accumulate=n)] for n in (1, 2, 4)]  # type: ignore[arg-type]
    for curve in curves[1:]:
        np.testing.assert_allclose(curve, curves[0], rtol=0, atol=1e-5)
    assert curves[1] != curves[0], "the sums are taken in another order"


def test_clipping_scales_the_gradient_to_the_norm_that_is_allowed(corpus: Corpus) -> None:
    for clip in (0.01, 1e6, math.inf):
        one, plain = new_run(corpus, 1, clip=clip), new_run(corpus, 1)
        batch = next(corpus.batches(4, 16))
        _, norm = one.step(batch, 1e-3)
        plain.backward(batch)
        for mine, theirs in zip(one.learner.module.parameters(), plain.learner.module.parameters(), strict=True):
            assert mine.grad is not None and theirs.grad is not None
            torch.testing.assert_close(mine.grad, theirs.grad * min(1.0, clip / norm), rtol=1e-4, atol=0)
        assert 0.01 < norm < 1e6, "told is the norm before"


# -- running mean ----------------------------------------------------------------------------------------------


def test_the_running_mean_equals_its_formula(corpus: Corpus, tmp_path: Path) -> None:
    one = new_run(corpus, 6, tmp_path, ema=0.8, evaluate_every=6)
    means = {k: w.astype(np.float64) for k, w in weights_of(one).items()}
    for _ in one:
        means = {k: 0.8 * m + 0.2 * weights_of(one)[k] for k, m in means.items()}
    saved, raw = arrays_of(one.finish().model), arrays(tmp_path / "checkpoints" / "step-00000006")
    for name, mean in means.items():
        np.testing.assert_allclose(saved[name], mean, rtol=0, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(raw[name], weights_of(one)[name], err_msg="a checkpoint trains on")
    assert any(np.abs(saved[k] - raw[k]).max() > 1e-3 for k in raw)


def test_the_mean_is_what_is_measured(corpus: Corpus) -> None:
    history: list[Step] = []
    model = train(tiny(), corpus, steps=6, ema=0.8, observe=history.append, **SETTINGS)
    assert history[-1].held_out == pytest.approx(held_out_loss(arrays_of(model), corpus), abs=1e-5)


# -- label smoothing -------------------------------------------------------------------------------------------


def test_label_smoothing_is_trained_on_and_not_measured(corpus: Corpus) -> None:
    """(1 - e) on the label and e / V on every token (Szegedy et al. 2016); the perplexity is of the labels alone."""
    e = 0.2
    one = new_run(corpus, 4, label_smoothing=e, evaluate_every=4, seed=2)
    batch, graph = next(corpus.batches(4, 16, seed=2)), tiny().graph()
    logits = interpret(graph, {k: batch[k] for k in graph.inputs}, weights_of(one))["logits"].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    label = np.take_along_axis(logs, batch["labels"][..., None], -1)[..., 0]
    history = list(one)
    assert history[0].loss == pytest.approx(-((1 - e) * label + e * logs.mean(-1)).mean(), abs=1e-5)
    last = history[-1]
    assert last.held_out == pytest.approx(held_out_loss(weights_of(one), corpus), abs=1e-5)
    assert last.metrics == {"perplexity": pytest.approx(math.exp(last.held_out or 0))}


# -- f16 and other widths --------------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, value: float, bad: Callable[[int], bool]) -> None:
    """Put a value into a gradient of the steps that are `bad` (counted from 0)."""
    backward = Run.backward

    def spoiled(self: Run, batch: Batch) -> float:
        loss = backward(self, batch)
        if bad(self.done):
            next(self.learner.module.parameters()).grad.view(-1)[3] = value  # type: ignore[union-attr]
        return loss

    monkeypatch.setattr(Run, "backward", spoiled)


def test_f16_leaves_out_a_step_that_overflows(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, math.inf, lambda step: step == 2)
    one = new_run(corpus, 5, precision="f16", ema=0.5, evaluate_every=5)
    seen, means, scales = [weights_of(one)], [], []
    for _ in one:
        seen.append(weights_of(one))
        means.append({k: m.clone() for k, m in one.learner.average.means.items()})  # type: ignore[union-attr]
        scales.append(one.learner.scaler.get_scale())
    assert scales == [2.0**16, 2.0**16, 2.0**15, 2.0**15, 2.0**15]
    assert one.learner.updates == 4
    same = [all(np.array_equal(a[k], b[k]) for k in a) for a, b in pairwise(seen)]
    assert same == [False, False, True, False, False]
    assert all(torch.equal(means[1][k], means[2][k]) for k in means[1]), "no update, no new mean"


def test_f16_gives_up_when_no_scale_helps(corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spoil(monkeypatch, math.inf, lambda step: True)
    with pytest.raises(TrainingError, match=r"^gradient norm of step 31 \(of 40\) is inf"):
        run(tiny(), corpus, 40, precision="f16", evaluate_every=100, folder=tmp_path)
    lines = [json.loads(x, parse_constant=pytest.fail) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [x["gradient_norm"] for x in lines] == [None] * 30, "JSON has no infinity"


@pytest.mark.parametrize("precision", ["f32", "bf16", "f16"])
def test_every_width_goes_on_to_the_same_bits(
    corpus: Corpus, tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, parts, a running mean and, in f16, a step left out before the kill."""
    if precision == "f16":
        spoil(monkeypatch, math.inf, lambda step: step in (1, 6))
    settings = {"precision": precision, "accumulate": 2, "ema": 0.9, "evaluate_every": 4, "seed": 3}
    whole = run(dropping(), corpus, 10, folder=tmp_path / "a", **settings)
    run(dropping(), corpus, 10, folder=tmp_path / "b", until=6, **settings)
    again = run(dropping(), corpus, 10, folder=tmp_path / "b", resume=True, **settings)
    assert numbers(again) == numbers(whole)[4:]
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    states = [open_checkpoint(tmp_path / x / "checkpoints" / "step-00000010").state for x in "ab"]
    assert states[0] == states[1], "the digest of every file, too"
    assert states[0]["updates"] == (8 if precision == "f16" else 10)
    scale = states[0].get("scaler", {}).get("scale")
    assert scale == (2.0**14 if precision == "f16" else None)


# -- when it goes wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_changes_nothing(
    corpus: Corpus, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, value, lambda step: step == 5)
    one = new_run(corpus, 10, tmp_path, evaluate_every=2)
    seen = weights_of(one)
    with pytest.raises(TrainingError, match=rf"^gradient norm of step 6 \(of 10\) is {value}, at learning rate") as e:
        for _ in one:
            seen = weights_of(one)
    for name, array in weights_of(one).items():
        np.testing.assert_array_equal(array, seen[name])
        np.testing.assert_array_equal(arrays(tmp_path)[name], arrays_of(e.value.model)[name])
    assert f"the weights after step 4 are kept in {tmp_path}" in str(e.value)
    assert_same_weights(tmp_path, tmp_path / "checkpoints" / "step-00000004")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_a_run_after_a_checkpoint(corpus: Corpus, tmp_path: Path, name: str) -> None:
    number, before = getattr(signal, name), signal.getsignal(getattr(signal, name))
    whole = run(dropping(), corpus, 9, folder=tmp_path / "a", evaluate_every=4)

    def send(step: Step) -> None:
        if step.step == 5:
            signal.raise_signal(number)

    folder = tmp_path / "b"
    settings = {**SETTINGS, "folder": folder, "evaluate_every": 4}
    with pytest.raises(
        TrainingError, match=rf"^{name} ended the run after step 6 of 9\n.*after step 6 are kept in .*\n.*--resume"
    ) as e:
        train(dropping(), corpus, steps=9, observe=send, **settings)
    assert e.value.exit_code == 128 + number
    assert signal.getsignal(number) == before
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    again = run(dropping(), corpus, 9, folder=folder, evaluate_every=4, resume=True)
    assert numbers(again) == numbers(whole)[6:]
    assert_same_weights(folder, tmp_path / "a")
    assert [x["step"] for x in read_log(folder)] == list(range(1, 10))


@pytest.fixture
def interrupts() -> Iterator[None]:
    """SIGINT as at a terminal: a shell starts what runs in the background with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_does_not_wait(corpus: Corpus, tmp_path: Path, interrupts: None) -> None:
    def send(step: Step) -> None:
        if step.step == 5:
            # os.kill may reach another thread, and then two of the same signal can be seen as one.
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tiny(), corpus, steps=9, observe=send, folder=tmp_path, evaluate_every=4, **SETTINGS)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    assert len(run(tiny(), corpus, 9, folder=tmp_path, evaluate_every=4, resume=True)) == 5


def test_a_signal_in_the_last_step_comes_too_late(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Run.step

    def signalled(self: Run, batch: Batch, rate: float) -> tuple[float, float]:
        if self.done == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, rate)

    monkeypatch.setattr(Run, "step", signalled)
    assert len(run(tiny(), corpus, 4)) == 4


# -- torch.compile ---------------------------------------------------------------------------------------------


def test_a_compiled_module_has_the_same_course(corpus: Corpus) -> None:
    data = replace(corpus, held_out=corpus.held_out[:0])
    plain = run(tiny(), data, 5, ema=0.5)
    compiled = run(tiny(), data, 5, ema=0.5, compile=True)
    np.testing.assert_allclose([s.loss for s in compiled], [s.loss for s in plain], rtol=0, atol=1e-5)


# -- what is written -------------------------------------------------------------------------------------------


def test_events_of_tensorboard_and_a_line_a_kill_cut_off(corpus: Corpus, tmp_path: Path) -> None:
    """Of a run that was killed and resumed: every step once, in both logs, with the same numbers."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"folder": tmp_path, "evaluate_every": 4, "tensorboard": True}
    run(tiny(), corpus, 8, until=6, **settings)
    with (tmp_path / "log.jsonl").open("a") as f:
        f.write('{"step": 7, "steps": 8, "lo')
    assert [x["step"] for x in read_log(tmp_path)] == [1, 2, 3, 4, 5, 6]
    history = run(tiny(), corpus, 8, resume=True, **settings)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == list(range(1, 9))
    assert [x["loss"] for x in lines[4:]] == [s.loss for s in history]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {
        "loss", "held_out", "perplexity", "learning_rate", "gradient_norm", "tokens_per_second",
    }  # fmt: skip
    for name in ("loss", "learning_rate", "gradient_norm"):
        found = events.Scalars(name)
        assert [x.step for x in found] == list(range(1, 9)), name
        assert [np.float32(x.value) for x in found] == [np.float32(line[name]) for line in lines]
    held_out = [(x.step, np.float32(x.value)) for x in events.Scalars("held_out")]
    assert held_out == [(x["step"], np.float32(x["held_out"])) for x in lines if "held_out" in x]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_events_are_on_the_disk_before_the_checkpoint_that_covers_them(corpus: Corpus, tmp_path: Path) -> None:
    """A run that goes on from it does not write them again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[int, list[int]] = {}

    def look(step: Step) -> None:
        events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
        found[step.step] = [x.step for x in events.Scalars("loss")] if step.step % 4 == 0 else []

    train(tiny(), corpus, steps=8, observe=look, folder=tmp_path, tensorboard=True, evaluate_every=4, **SETTINGS)
    assert found[4] == [1, 2, 3, 4] and found[8] == list(range(1, 9))


def test_the_share_of_the_peak_is_that_of_the_cost_model(corpus: Corpus) -> None:
    """6 N T for N weights that are multiplied and T tokens, and 12 S^2 C a row and layer for attention."""
    c = {"vocab": 512, "dim": 256, "ffn": 512, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 64, "tied": False}
    rows, length = 4, 128
    ids = np.zeros((rows, length), np.int64)
    graph = with_loss(tiny(**c).graph())
    arithmetic = Arithmetic(graph)
    batch = dict.fromkeys(graph.inputs, ids)
    flops = arithmetic.of(batch)
    layer = 256 * 256 + 2 * 256 * 128 + 256 * 256 + 3 * 256 * 512
    products = 6 * (3 * layer + 512 * 256) * rows * length
    attention = 12 * length**2 * 256 * rows * 3
    assert products + attention / 2 < flops < (products + attention) * 1.05, "half of it is masked; norms and the rest"
    assert arithmetic.share(batch, 0.5) is None, "the peak was not measured"
    arithmetic.peak = 1e12
    assert arithmetic.share(batch, 0.5) == flops / 0.5 / 1e12
    one = new_run(corpus, 2)
    one.arithmetic.peak = 1e9
    for step in one:
        assert step.share is not None and 0 < step.share <= 1


def test_time_left_of_a_resumed_run_counts_its_own_steps(corpus: Corpus, tmp_path: Path) -> None:
    run(tiny(), corpus, 8, folder=tmp_path, evaluate_every=4, until=4)
    for step in run(tiny(), corpus, 8, folder=tmp_path, evaluate_every=4, resume=True):
        assert step.seconds_left == pytest.approx(step.seconds / (step.step - 4) * (8 - step.step))
