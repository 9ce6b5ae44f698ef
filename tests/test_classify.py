"""Labelled texts: what is read and held out, loss and accuracy by hand, heads on checkpoints, recipes to labels."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from command_line import call
from monograph.data.errors import CorpusError
from monograph.data.tokenizers import train as train_tokenizer
from monograph.frontends.dsl import Model, load_family
from monograph.frontends.huggingface import save_pretrained, with_head
from monograph.frontends.load import load
from monograph.ir import interpret
from monograph.ir.errors import ConfigError, WeightsError
from monograph.ir.weights import Weights
from monograph.parity import compare
from monograph.runs import prepare
from monograph.training.labelled import Labelled, hold_out, labels_of, truncated
from monograph.training.loop import Run, train
from monograph.training.progress import Step
from monograph.training.recipe import Recipe
from monograph.training.settings import Settings
from monograph.training.source import check_fit

pytestmark = pytest.mark.slow

GOOD, BAD, OTHER = "good great fine".split(), "bad awful sad".split(), "the film was day and food so quite a".split()
SIZES: dict[str, Any] = {"dim": 16, "heads": 2, "ffn": 24, "layers": 1, "max_positions": 24}


def reviews(count: int = 300) -> list[tuple[str, str]]:
    """Sentences in which one word decides."""
    rng = np.random.default_rng(0)
    rows: list[tuple[str, str]] = []
    for i in range(count):
        words = list(rng.choice(OTHER, rng.integers(2, 8)))
        words.insert(rng.integers(len(words) + 1), rng.choice(GOOD if i % 3 else BAD))
        rows.append(("pos" if i % 3 else "neg", " ".join(words)))
    return rows


@pytest.fixture(scope="module")
def data() -> Labelled:
    return Labelled.of(reviews(), vocab=80, held_out=0.1)


def classifier(data: Labelled, **changes: Any) -> Model:
    labels = {str(i): name for i, name in enumerate(data.labels)}
    return load_family("bert", "sequence-classification")(**{**SIZES, "vocab": data.vocab, "labels": labels, **changes})


# -- files and parts -----------------------------------------------------------------------------------------------


def test_tsv_and_jsonl_hold_the_same(tmp_path: Path) -> None:
    rows = [("2", "a b"), ("10", "b c"), ("2", "d\u2028e"), ("2", "")]
    tsv, jsonl = tmp_path / "a.tsv", tmp_path / "a.jsonl"
    tsv.write_text("".join(f"{label}\t{text}\n" for label, text in rows), encoding="utf-8")
    jsonl.write_text("".join(json.dumps({"text": text, "label": int(label)}) + "\n" for label, text in rows))
    for path in (tsv, jsonl):
        data = Labelled.read(path, vocab=60, held_out=0.0)
        assert data.labels == ("2", "10"), "numbers in their order"
        assert data.train.labels.tolist() == [0, 1, 0]
        ids = [data.tokenizer.encode(text) for _, text in rows[:3]]
        assert [r.tolist() for r in map(data.train.texts.__getitem__, range(3))] == ids
        assert data.sizes(24) == {"train_texts": 3, "held_out_texts": 0, "labels": 2, "removed_texts": 1}
    assert labels_of([("b", "x"), ("10", "x"), ("a", "x"), ("9", "x")]) == ("10", "9", "a", "b")


def test_rows_that_cannot_be_used(tmp_path: Path, data: Labelled) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"label": "a", "text": "b"}\n{"label": true, "text": "b"}\n')
    with pytest.raises(CorpusError, match=r"a\.jsonl:2: is not an object whose label and text are texts"):
        Labelled.read(path)
    with pytest.raises(CorpusError, match="2 rows have the labels a, expected two or more"):
        Labelled.of([("a", "x"), ("a", "y")])
    with pytest.raises(CorpusError, match="no label is called 'posi', did you mean 'pos'"):
        Labelled.of([("posi", "x")], labels=("neg", "pos"))
    with pytest.raises(CorpusError, match="2 texts are too few to train on and to hold out 90%"):
        Labelled.of([("a", "x"), ("b", "y")], held_out=0.9)
    with pytest.raises(CorpusError, match="length is 2, which leaves no room"):
        next(data.batches(2, 2))


def test_no_text_is_on_both_sides_and_every_label_is_held_out() -> None:
    rows = [*reviews(400), *((label, f" {text}  ") for label, text in reviews(200))]
    kept = hold_out(rows, 0.25)
    assert kept == hold_out(rows[::-1], 0.25), "the order of the rows does not matter"
    texts = {" ".join(t.split()): label for label, t in rows}
    for label in ("pos", "neg"):
        every = [t for t, name in texts.items() if name == label]
        assert sum(t in kept for t in every) == round(0.25 * len(every))
    data = Labelled.of(rows, vocab=80, held_out=0.25)
    sides = [{tuple(p.texts[i]) for i in range(len(p))} for p in (data.train, data.held_out)]
    assert not sides[0] & sides[1]
    assert len(data.train) + len(data.held_out) == 600
    assert len(hold_out(reviews(30), 0.001)) == 1


def test_every_label_that_is_held_out_is_trained_too() -> None:
    rows = [("rare", "once"), *(("often", f"text {i}") for i in range(3))]
    assert len(hold_out(rows, 0.9)) == 2 and "once" not in hold_out(rows, 0.9)
    with pytest.raises(CorpusError, match="2 texts are too few to train on and to hold out 5%"):
        Labelled.of([("a", "x"), ("b", "y")])


def test_a_new_classifier_has_the_labels_its_recipe_gives(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("".join(f"{label}\t{text}\n" for label, text in reviews(40)))

    def made(labels: Any) -> Any:
        model = {"family": "bert", "config": {**SIZES, "labels": labels}}
        data = {"kind": "labelled", "paths": ["a.tsv"]}
        return prepare(Recipe.of({"model": model, "data": data, "train": {"steps": 1}}, folder=tmp_path))

    model, source, _ = made({"0": "pos", "1": "neg", "2": "mixed"})
    assert source.labels == ("pos", "neg", "mixed") == tuple(model.config.labels.values())
    with pytest.raises(CorpusError, match=r"a\.tsv: no label is called 'neg'"):
        made({"0": "pos", "1": "bad"})
    for wrong in (["pos", "neg"], {"1": "pos", "2": "neg"}, {"0": "pos", "1": 3}):
        with pytest.raises(ConfigError, match="expected a table of names by number"):
            made(wrong)


# -- batches and loss ----------------------------------------------------------------------------------------------


def test_a_batch_is_padded_texts_and_a_label_each() -> None:
    tokenizer = train_tokenizer("wordpiece", ["a b c d e f"] * 2, 60, "masked-lm")
    pad, cls, sep = 0, 2, 3
    a, b, c, d = (tokenizer.encode(t, add_special=False)[0] for t in "abcd")
    data = Labelled.of([("x", "a b c d"), ("y", "d"), ("x", "b [SEP]")], tokenizer, held_out=0.0)
    batch = next(data.batches(3, 5))
    rows = np.argsort(-batch["attention_mask"].sum(1), kind="stable")
    found = {k: v[rows].tolist() for k, v in batch.items()}
    assert found["input_ids"][0][:4] == [cls, b, tokenizer.encode("[", add_special=False)[0], found["input_ids"][0][3]]
    assert found["input_ids"][0][4] == sep, "cut, but the separator stays"
    assert found["input_ids"][1] == [cls, a, b, c, sep]
    assert found["input_ids"][2] == [cls, d, sep, pad, pad]
    assert found["attention_mask"][2] == [1, 1, 1, 0, 0]
    assert found["position_ids"] == [[0, 1, 2, 3, 4]] * 3
    assert found["token_type_ids"] == [[0] * 5] * 3
    assert found["labels"] == [0, 0, 1]
    assert data.sizes(5)["cut_texts"] == 2
    assert truncated(np.arange(9), 5, 2).tolist() == [0, 1, 2, 7, 8]


def test_a_step_depends_on_seed_and_number_only(data: Labelled) -> None:
    first = list(itertools.islice(data.batches(8, 24, seed=3), 60))
    later = list(itertools.islice(data.batches(8, 24, seed=3, start=40), 20))
    for a, b in zip(first[40:], later, strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in a)
    turn = len(data.train) // 8
    rows = [r[m == 1].tolist() for x in first[:turn] for r, m in zip(x["input_ids"], x["attention_mask"], strict=True)]
    every = [data.train.texts[i].tolist() for i in range(len(data.train))]
    assert len(every) - len(rows) < 8, "a pass takes every text at most once"
    assert all(rows.count(r) <= every.count(r) for r in rows)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_accuracy_are_those_of_each_text_alone(data: Labelled, smoothing: float) -> None:
    model = classifier(data)
    model.weights = Weights.initialize(model.graph(), 4)
    graph = model.graph()
    losses: list[float] = []
    right: list[bool] = []
    for i, label in enumerate(data.held_out.labels):
        ids = data.held_out.texts[i][None].astype(np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        inputs["position_ids"] = np.arange(ids.size)[None]
        (logits,) = interpret(graph, inputs, model.weights.numpy)["logits"].astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum())
        losses.append(-log_p[label])
        right.append(logits.argmax() == label)
    settings = Settings(steps=1, batch=7, length=24, label_smoothing=smoothing, device="cpu")
    loss, metrics = Run(model, data, settings, None).measure()
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert metrics == {"accuracy": np.mean(right)}


def test_models_that_do_not_fit(data: Labelled) -> None:
    with pytest.raises(ConfigError, match="the model tells 3 labels apart but the data has 2"):
        check_fit(classifier(data, labels={"0": "a", "1": "b", "2": "c"}), data)
    with pytest.raises(ConfigError, match=r"the model has 20 tokens but the tokenizer of the data has \d+"):
        check_fit(classifier(data, vocab=20), data)
    with pytest.raises(ConfigError, match=r"bert is a masked-lm model; this data trains sequence-classification"):
        check_fit(load_family("bert", "masked-lm")(vocab=data.vocab, **SIZES), data)
    with pytest.raises(ConfigError, match="id2label has the ids 1, 2, expected 0 to 1"):
        classifier(data, labels={"1": "a", "2": "b"})


# -- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory, data: Labelled) -> Path:
    """A BERT with a masked-lm head, as a folder."""
    model = load_family("bert", "masked-lm")(vocab=data.vocab, **SIZES)
    model.weights, model.tokenizer = Weights.initialize(model.graph(), 1), data.tokenizer
    folder = tmp_path_factory.mktemp("masked")
    save_pretrained(model, folder)
    return folder


HEAD = ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]


def test_a_head_is_drawn_anew_and_the_encoder_kept(masked: Path, tmp_path: Path) -> None:
    base = load(masked)
    assert base.task == "masked-lm"
    model, drawn = with_head(base, "sequence-classification", seed=3, labels={"0": "x", "1": "y", "2": "z"})
    assert drawn == HEAD
    assert model.weights is not None
    assert base.weights is not None
    fresh = Weights.initialize(model.graph(), 3)
    for name in model.graph().params:
        expected = fresh.numpy(name) if name in HEAD else base.weights.numpy(name)
        assert np.array_equal(model.weights.numpy(name), expected), name
    save_pretrained(model, tmp_path)
    again = load(tmp_path)
    assert again.task == "sequence-classification"
    assert again.config.labels == {"0": "x", "1": "y", "2": "z"}
    assert with_head(again, "sequence-classification")[1] == []
    back, lost = with_head(again, "masked-lm")
    assert lost == [k for k in back.graph().params if k.startswith("cls.")]


def test_a_head_goes_over_the_weights_as_they_are_now(masked: Path) -> None:
    base, name = load(masked), "bert.embeddings.LayerNorm.bias"
    assert base.weights is not None
    changed = base.weights.numpy(name) + 1
    base.weights = base.weights | Weights.of({name: changed})
    model, drawn = with_head(base, "sequence-classification")
    assert model.weights is not None
    assert np.array_equal(model.weights.numpy(name), changed)
    assert drawn == HEAD


def test_a_missing_encoder_weight_is_an_error(masked: Path, tmp_path: Path) -> None:
    lost = "bert.encoder.layer.0.attention.self.query.weight"
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((masked / name).read_bytes())
    found = Weights.open(masked)
    Weights.of({k: found.numpy(k) for k in found if k != lost}).save(tmp_path)
    base = load(masked)
    base.folder, base.weights = tmp_path, Weights.open(tmp_path)
    with pytest.raises(WeightsError, match="1 differences") as e:
        with_head(base, "sequence-classification")
    assert lost in str(e.value)
    with pytest.raises(ConfigError, match="bert has no head for 'seq2seq-lm'"):
        with_head(base, "seq2seq-lm")


def test_the_head_of_a_pre_training_checkpoint_keeps_its_pooler(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    theirs = transformers.BertForPreTraining(config)
    theirs.save_pretrained(tmp_path)
    mlm = load(tmp_path, task="masked-lm")
    assert mlm.task == "masked-lm"
    model, drawn = with_head(mlm, "sequence-classification")
    assert drawn == ["classifier.weight", "classifier.bias"]
    assert model.weights is not None
    pooler = theirs.bert.pooler.dense.weight.detach().numpy()
    assert np.array_equal(model.weights.numpy("bert.pooler.dense.weight"), pooler)


def test_transformers_reads_what_was_trained(data: Labelled, tmp_path: Path) -> None:
    trained = train(classifier(data), data, steps=5, batch=4, length=24, folder=tmp_path, progress=False, device="cpu")
    theirs = transformers.BertForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.id2label == {0: "neg", 1: "pos"}
    assert theirs.config.label2id == {"neg": 0, "pos": 1}
    graph, batch = trained.graph(), next(data.batches(6, 24, seed=5))
    assert trained.weights is not None
    found = interpret(graph, {k: batch[k] for k in graph.inputs}, trained.weights.numpy)["logits"]
    with torch.no_grad():
        expected = theirs(**{k: torch.from_numpy(v) for k, v in batch.items()})
    np.testing.assert_allclose(found, expected.logits.numpy(), atol=1e-5)


def test_parity_of_rows_counts_every_label() -> None:
    """An output without tokens [B,N] counts whole in every row."""
    logits, rows = np.zeros((3, 7), np.float32), np.ones(3, bool)
    other = logits.copy()
    other[1, 4] = 0.5
    row = compare("case", "backend", logits, other, rows, 1e-4)
    assert (row.difference, row.passed) == (0.5, False)


# -- recipes -------------------------------------------------------------------------------------------------------


RECIPE = """
[model]
path = "masked"
[data]
kind = "labelled"
paths = ["rows.tsv"]
held_out = 0.1
[train]
steps = 120
batch = 16
length = 24
learning_rate = 3e-3
device = "cpu"
evaluate_every = 60
"""


def test_a_recipe_from_a_masked_model_to_labels(masked: Path, tmp_path: Path) -> None:
    (tmp_path / "masked").symlink_to(masked, target_is_directory=True)
    (tmp_path / "rows.tsv").write_text("".join(f"{label}\t{text}\n" for label, text in reviews()))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    printed = json.loads(call("train", tmp_path / "recipe.toml", tmp_path / "run", "--json").stdout)
    assert printed["notes"] == [f"drawn anew, for the checkpoint has no such head: {', '.join(HEAD)}"]
    assert printed["measured"][-1]["metrics"]["accuracy"] > 0.95
    assert (printed["train_texts"], printed["held_out_texts"], printed["labels"]) == (270, 30, 2)
    rows = json.loads(call("verify", tmp_path / "run", "--json").stdout)["rows"]
    assert {r["backend"] for r in rows} == {"torch", "onnx", "ort"}
    call("build", tmp_path / "run", tmp_path / "built")
    texts = ["the film was great", "quite an awful film and so a bad day"]
    found = json.loads(call("run", tmp_path / "built", *texts, "--json").stdout)
    assert [r["label"] for r in found] == ["pos", "neg"]
    model = load(tmp_path / "run")
    for text, one in zip(texts, found, strict=True):
        ids = np.array([model.tokenizer.encode(text)])
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        inputs["position_ids"] = np.arange(ids.size)[None]
        assert model.weights is not None
        p = torch.from_numpy(interpret(model.graph(), inputs, model.weights.numpy)["logits"][0]).double().softmax(0)
        assert one["probabilities"] == pytest.approx({"neg": p[0].item(), "pos": p[1].item()}, abs=1e-5)
    assert call("run", tmp_path / "built", texts[0]).stdout.startswith("pos  (pos 0.")
    again = (tmp_path / "recipe.toml").read_text().replace("masked", "run").replace("= 120", "= 2")
    (tmp_path / "again.toml").write_text(again)
    more = json.loads(call("train", tmp_path / "again.toml", tmp_path / "more", "--json").stdout)
    assert more["notes"] == [], "its own head and labels are kept"
    assert more["measured"][0]["metrics"]["accuracy"] > 0.95


def test_a_recipe_without_a_checkpoint(tmp_path: Path) -> None:
    from monograph.runs import follow
    from monograph.training.recipe import Recipe

    (tmp_path / "rows.tsv").write_text("".join(f"{label}\t{text}\n" for label, text in reviews(60)))
    values = {
        "model": {"family": "bert", "config": SIZES},
        "data": {"kind": "labelled", "paths": ["rows.tsv"]},
        "tokenizer": {"kind": "wordpiece", "vocab": 80},
        "train": {"steps": 2, "batch": 4, "length": 24, "device": "cpu"},
    }
    steps: list[Step] = []
    done = follow(Recipe.of(values, folder=tmp_path), tmp_path / "run", progress=False, observe=steps.append)
    assert done.model.task == "sequence-classification"
    assert done.model.config.labels == {"0": "neg", "1": "pos"}
    assert done.notes == []
    assert len(steps) == 2
    values["model"] = {"family": "llama", "config": {}}
    with pytest.raises(ConfigError, match="llama has no head for 'sequence-classification'"):
        follow(Recipe.of(values, folder=tmp_path), tmp_path / "other", progress=False)
