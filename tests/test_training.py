"""Training: the loop equals one written by hand in PyTorch, goes on where it stopped, and stops cleanly."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
import pytest
import torch
from monograph.backends.torch import to_inputs, to_torch
from monograph.data.batch import Batch
from monograph.frontends.dsl import Model, load_family
from monograph.frontends.huggingface import load_folder
from monograph.frontends.load import load
from monograph.frontends.tokenizer import Tokenizer
from monograph.ir import interpret
from monograph.ir.errors import ConfigError, MonographError, RuntimeInputError
from monograph.ir.weights import Weights
from monograph.training.corpus import Corpus
from monograph.training.errors import TrainingError
from monograph.training.loop import Run, train
from monograph.training.loss import with_loss
from monograph.training.progress import Step
from monograph.training.schedule import learning_rate, parameter_groups

pytestmark = pytest.mark.slow

TEXT = "".join(
    f"Line {i}: the cat {'sat' if i % 3 else 'lay'} on mat {i % 7}, and all was well.\n\n" for i in range(300)
)
SETTINGS: dict[str, Any] = {"batch": 4, "length": 16, "progress": False, "device": "cpu"}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.of(TEXT, vocab=300)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    saved = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(saved)


def tiny(**changes: Any) -> Model:
    settings = {"vocab": 300, "dim": 32, "ffn": 64, "layers": 2, "heads": 4, "kv_heads": 2, "tied": True}
    return load_family("llama")(**(settings | changes))


def run(model: Model, corpus: Corpus, steps: int, **settings: Any) -> tuple[Model, list[Step]]:
    history: list[Step] = []
    trained = train(model, corpus, steps=steps, observe=history.append, **{**SETTINGS, **settings})
    return trained, history


def held_out_loss(model: Model, corpus: Corpus) -> float:
    """By the NumPy reference, independently of the loop."""
    assert model.weights is not None
    graph = model.graph()
    params = {k: model.weights.numpy(k) for k in graph.params}
    total, count = 0.0, 0
    for batch in corpus.held_out_batches(8, 16):
        logits = interpret(graph, {k: batch[k] for k in graph.inputs}, params)["logits"].astype(np.float64)
        log_sum = np.log(np.exp(logits).sum(-1))
        labels = batch["labels"]
        chosen = np.take_along_axis(logits, np.maximum(labels, 0)[..., None], -1)[..., 0]
        total += ((log_sum - chosen) * (labels >= 0)).sum()
        count += (labels >= 0).sum()
    return total / count


# -- loss and schedule -----------------------------------------------------------------------------------------


def test_loss_is_part_of_the_graph() -> None:
    graph = tiny().graph()
    trainable = with_loss(graph, keep_logits=True)
    assert list(trainable.outputs) == ["logits", "loss"]
    assert str(trainable.inputs["labels"].type) == "i64[B,S]"
    assert str(trainable.outputs["loss"].type) == "f32[]"
    assert list(with_loss(graph).outputs) == ["loss"]
    assert list(graph.outputs) == ["logits"]
    assert "labels" not in graph.inputs, "the graph given is not changed"
    with pytest.raises(MonographError, match="no output `logits` to train on"):
        with_loss(with_loss(graph))


def test_loss_of_narrow_logits_is_wide() -> None:
    from monograph.ir import DType

    assert str(with_loss(tiny().graph(DType.bf16)).outputs["loss"].type) == "f32[]"


def test_loss_equals_pytorch(corpus: Corpus) -> None:
    graph = with_loss(tiny().graph(), keep_logits=True)
    module = to_torch(graph, seed=1)
    (batch, *_) = corpus.held_out_batches(100, 16)
    assert (batch["labels"] == -100).any(), "the case needs padding"
    outputs = module(**to_inputs(batch))
    expected = torch.nn.functional.cross_entropy(
        outputs["logits"].flatten(0, 1), torch.from_numpy(batch["labels"]).flatten(), ignore_index=-100
    )
    torch.testing.assert_close(outputs["loss"], expected)


def test_schedule_by_hand() -> None:
    rates = [learning_rate(i, peak=8.0, steps=8, warmup=4, final=0.25) for i in range(9)]
    assert rates[:4] == [2.0, 4.0, 6.0, 8.0]
    cosine = [8 * (0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi * t / 4))) for t in (1, 2, 3)]
    np.testing.assert_allclose(rates[4:7], cosine)
    assert rates[7:] == [2.0, 2.0]
    assert learning_rate(0, peak=1.0, steps=1, warmup=0, final=0.1) == pytest.approx(0.1)


def test_norms_and_biases_do_not_decay() -> None:
    module = to_torch(tiny(attention_bias=True, mlp_bias=True).graph())
    decay, rest = parameter_groups(module, 0.1)
    names = {id(p): k for k, p in module.named_parameters()}
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    rested = {names[id(p)] for p in rest["params"]}
    assert rested == {k for k in names.values() if "norm" in k or k.endswith("bias")}
    assert {names[id(p)] for p in decay["params"]} == set(names.values()) - rested


# -- the loop --------------------------------------------------------------------------------------------------


def plain_loop(model: Model, corpus: Corpus, steps: int, rate: float, warmup: int, decay: float) -> list[float]:
    """The same training with nothing but PyTorch: its own update rule, clipping and schedule."""
    graph = model.graph()
    module = to_torch(graph, Weights.initialize(graph, 3))
    moments = {k: (torch.zeros_like(p), torch.zeros_like(p)) for k, p in module.named_parameters()}
    batches, losses = corpus.batches(4, 16, seed=3), []
    for i in range(steps):
        batch = to_inputs(next(batches))
        labels = batch.pop("labels")
        logits = module(**batch)["logits"]
        loss = -torch.log_softmax(logits, -1).gather(-1, labels[..., None]).mean()
        module.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in module.parameters() if p.grad is not None))
        scale = min(1.0, 1.0 / (norm + 1e-6))
        now = rate * (i + 1) / warmup if i < warmup else None
        if now is None:
            now = rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (i - warmup + 1) / (steps - warmup))))
        with torch.no_grad():
            for k, p in module.named_parameters():
                assert p.grad is not None
                g, (m, v) = p.grad * scale, moments[k]
                m.mul_(0.9).add_(g, alpha=0.1)
                v.mul_(0.95).addcmul_(g, g, value=0.05)
                if p.ndim > 1:
                    p.mul_(1 - now * decay)
                corrected = (v / (1 - 0.95 ** (i + 1))).sqrt() + 1e-8
                p.sub_(now * (m / (1 - 0.9 ** (i + 1))) / corrected)
    return losses


def test_loss_curve_equals_a_loop_written_by_hand(corpus: Corpus) -> None:
    expected = plain_loop(tiny(), corpus, 20, 5e-3, 4, 0.3)
    _, history = run(tiny(), corpus, 20, learning_rate=5e-3, warmup=4, weight_decay=0.3, seed=3)
    np.testing.assert_allclose([s.loss for s in history], expected, atol=1e-5, rtol=0)
    assert max(s.gradient_norm for s in history) > 1, "some gradients must have been clipped"
    assert expected[-1] < expected[0] - 1


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, list[Step], Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    model, history = run(tiny(), corpus, 60, learning_rate=1e-2, folder=folder, evaluate_every=30)
    return model, history, folder


def test_it_learns(trained: tuple[Model, list[Step], Path]) -> None:
    _, history, _ = trained
    assert history[0].loss == pytest.approx(math.log(300), abs=0.1), "at first all tokens are equally likely"
    assert [s.step for s in history if s.held_out is not None] == [30, 60]
    assert history[-1].held_out is not None
    assert history[-1].held_out < 2.0
    assert history[29].held_out > history[59].held_out  # type: ignore[operator]
    assert [s.step for s in history] == list(range(1, 61))
    assert history[-1].seconds_left == 0


def test_reported_held_out_loss_is_that_of_the_saved_weights(
    corpus: Corpus, trained: tuple[Model, list[Step], Path]
) -> None:
    model, history, folder = trained
    assert held_out_loss(model, corpus) == pytest.approx(history[-1].held_out, abs=1e-5)
    loaded = load_folder(folder)
    assert loaded.config == model.config
    assert held_out_loss(loaded, corpus) == pytest.approx(history[-1].held_out, abs=1e-5)


def test_saved_folder(corpus: Corpus, trained: tuple[Model, list[Step], Path]) -> None:
    model, _, folder = trained
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in folder.iterdir()} == names | {"checkpoints", "log.jsonl", "loss.png"}
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == ["step-00000030", "step-00000060"]
    kept = folder / "checkpoints" / "step-00000030"
    assert {p.name for p in kept.iterdir()} == names | {"optimizer.safetensors", "state.json"}
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["vocab_size"], config["eos_token_id"]) == ("llama", 300, 0)
    tokenizer = Tokenizer.open(folder)
    assert tokenizer.encode("the cat") == corpus.tokenizer.encode("the cat")
    assert tokenizer.eos_ids == (0,)
    assert model.folder == folder


def test_transformers_loads_the_folder_and_agrees(corpus: Corpus, trained: tuple[Model, list[Step], Path]) -> None:
    from transformers import AutoModelForCausalLM

    _, history, folder = trained
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    total, count = 0.0, 0
    for batch in corpus.held_out_batches(8, 16):
        labels = torch.from_numpy(batch.pop("labels"))
        with torch.no_grad():
            logits = theirs(**to_inputs(batch)).logits
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
        count += int((labels >= 0).sum())
    assert total / count == pytest.approx(history[-1].held_out, abs=1e-4)


def test_the_seed_decides(corpus: Corpus) -> None:
    def curve(seed: int) -> list[float]:
        return [s.loss for s in run(tiny(), corpus, 4, seed=seed)[1]]

    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    first = curve(1)
    assert torch.equal(torch.random.get_rng_state(), state), "the caller's random numbers are left alone"
    torch.manual_seed(9)
    assert curve(1) == first
    assert curve(2) != first


def test_a_resumed_run_goes_on_exactly(corpus: Corpus, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(step: Step) -> None:
        before.append(step.loss)
        if step.step == 7:
            raise Stop

    whole, history = run(tiny(), corpus, 10, learning_rate=5e-3, seed=4)
    before: list[float] = []
    again = {**SETTINGS, "steps": 10, "learning_rate": 5e-3, "seed": 4, "folder": tmp_path, "evaluate_every": 5}
    with pytest.raises(Stop):
        train(tiny(), corpus, observe=stop, **again)
    after: list[float] = []
    resumed = train(tiny(), corpus, observe=lambda s: after.append(s.loss), resume=True, **again)
    losses = [s.loss for s in history]
    assert before == losses[:7]
    assert after == losses[5:], "from the last checkpoint, step 5, on"
    assert whole.weights is not None
    assert resumed.weights is not None
    for name in whole.weights:
        np.testing.assert_array_equal(resumed.weights.numpy(name), whole.weights.numpy(name), err_msg=name)


def test_training_goes_on_from_given_weights(corpus: Corpus, trained: tuple[Model, list[Step], Path]) -> None:
    model, history, folder = trained
    _, more = run(model, corpus, 1, learning_rate=1e-9)
    assert more[0].held_out == pytest.approx(history[-1].held_out, abs=1e-5)
    _, more = run(load_folder(folder), corpus, 1, learning_rate=1e-9)
    assert more[0].held_out == pytest.approx(history[-1].held_out, abs=1e-5)


def test_bf16_autocast_trains_alike(corpus: Corpus) -> None:
    _, wide = run(tiny(), corpus, 15, learning_rate=5e-3)
    model, narrow = run(tiny(), corpus, 15, learning_rate=5e-3, precision="bf16")
    assert [s.loss for s in narrow] != [s.loss for s in wide]
    np.testing.assert_allclose([s.loss for s in narrow], [s.loss for s in wide], atol=0.05)
    assert model.weights is not None
    assert {str(t.dtype) for t in model.weights.values()} == {"f32"}


class Bigram(mg.Config):
    vocab: int = 300
    dim: int = 24


@mg.model
def bigram(m: mg.Scope, c: Bigram, input_ids: mg.Value, attention_mask: mg.Value) -> mg.Value:
    x = m.embed("embed", input_ids, c.vocab, c.dim)
    y = m.linear("mix", x, c.dim) * mg.ops.cast(attention_mask, dtype=x.dtype).reshape(*x.shape[:2], 1)
    m.param("unused", 3)
    return m.linear("head", m.rms_norm("norm", x + y, 1e-6), c.vocab)


def test_a_model_of_your_own_is_trained_saved_and_loaded(corpus: Corpus, tmp_path: Path) -> None:
    model, history = run(bigram(dim=16), corpus, 30, learning_rate=1e-2, folder=tmp_path)
    assert history[-1].held_out is not None
    assert history[-1].held_out < history[0].loss - 1
    loaded = load(tmp_path, family=bigram)
    assert loaded.config == model.config == Bigram(dim=16)
    assert held_out_loss(loaded, corpus) == pytest.approx(history[-1].held_out, abs=1e-5)
    assert loaded.weights is not None
    assert "unused" in loaded.weights, "what nothing reads belongs to the checkpoint too"
    assert loaded.tokenizer.encode("the cat") == corpus.tokenizer.encode("the cat")
    assert held_out_loss(load(tmp_path), corpus) == pytest.approx(history[-1].held_out, abs=1e-5), "its file is kept"
    (tmp_path / "model_source.json").unlink()
    with pytest.raises(ConfigError, match="model_type 'bigram' is not supported"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="has model_type 'bigram', not 'llama'"):
        load(tmp_path, family=load_family("llama"))


# -- when it goes wrong ----------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_with_the_last_good_weights(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(self: Run, batch: Batch) -> float:
        if self.done == 6:
            with torch.no_grad():
                self.learner.module.get_parameter("model.norm.weight").fill_(math.nan)
        return backward(self, batch)

    backward = Run.backward
    monkeypatch.setattr(Run, "backward", spoiled)
    history: list[Step] = []
    with pytest.raises(TrainingError) as e:
        train(tiny(), corpus, steps=20, evaluate_every=4, folder=tmp_path, observe=history.append, **SETTINGS)
    assert str(e.value).startswith("loss of step 7 (of 20) is nan, at learning rate ")
    assert f"the weights after step 4 are kept in {tmp_path}" in str(e.value)
    for model in (e.value.model, load_folder(tmp_path)):
        assert held_out_loss(model, corpus) == pytest.approx(history[3].held_out, abs=1e-5)


def test_steps_too_large_blow_up_and_are_told(corpus: Corpus) -> None:
    with pytest.raises(TrainingError, match=r"of step \d+ \(of 40\) is (nan|inf)"):
        run(tiny(), corpus, 40, learning_rate=1e30, warmup=0, evaluate_every=100)


def test_settings_that_cannot_be(corpus: Corpus) -> None:
    for settings, message in (
        ({"batch": 0}, "batch is 0, expected more than 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"precision": "f8"}, "no precision is called 'f8'"),
        ({"schedule": "cosin"}, "no schedule is called 'cosin'.*did you mean 'cosine'"),
        ({"lenght": 8}, "no setting is called 'lenght'.*did you mean 'length'"),
        ({"accumulate": 3}, "a batch of 4 rows cannot be computed in 3 equal parts"),
        ({"ema": 1.0}, "ema is 1.0, expected at least 0 and less than 1"),
        ({"resume": True}, "resume needs the folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(tiny(), corpus, 1, **settings)
    with pytest.raises(ConfigError, match="the model has 290 tokens but the tokenizer of the data has 300"):
        run(tiny(vocab=290), corpus, 1)
    with pytest.raises(ConfigError, match=r"bert is a .* model; this data trains causal-lm models"):
        run(bert(), corpus, 1)


def bert() -> Model:
    family = load_family("bert")
    settings = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    settings |= {"intermediate_size": 64, "max_position_embeddings": 32, "type_vocab_size": 2, "hidden_act": "gelu"}
    return family(family.config_class.from_dict(settings))


def test_wrong_batches_are_refused_by_the_module(corpus: Corpus) -> None:
    module = to_torch(with_loss(tiny().graph()))
    batch = to_inputs(next(corpus.batches(2, 8)))
    with pytest.raises(RuntimeInputError, match="axis 0 of labels is 1"):
        module(**{**batch, "labels": batch["labels"][:1]})


def test_plain_lines_where_there_is_no_terminal(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    run(tiny(), corpus, 4, progress=True, evaluate_every=2)
    lines = capsys.readouterr().err.splitlines()
    assert lines.pop(0) == "preparing the first step"
    assert len(lines) == 4
    assert lines[0].startswith("step 1/4  loss 5.")
    assert "held-out" not in lines[0]
    assert "held-out" in lines[1]
    assert lines[3].endswith("0 s left")


def test_live_display_in_a_terminal(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name, value in (("TERM", "xterm"), ("COLUMNS", "160")):
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    _, history = run(tiny(), corpus, 4, progress=True, evaluate_every=2)
    shown = terminal.getvalue()
    assert "training" in shown
    assert "4/4" in shown
    assert f"loss {history[-1].loss:.3f}" in shown
    assert f"held-out {history[-1].held_out:.3f}" in shown
    assert "step 1/4" not in shown, "no plain lines beside it"
