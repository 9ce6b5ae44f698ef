"""Masked language modelling: what is hidden, the loss by hand, transformers, and a recipe from training to filling."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from command_line import call
from monograph.backends.torch import loss as chunked
from monograph.backends.torch import to_inputs, to_torch
from monograph.data.errors import CorpusError
from monograph.data.tokenizers import train as train_tokenizer
from monograph.frontends.dsl import Model, load_family
from monograph.frontends.load import load
from monograph.inference.engine import Engine
from monograph.ir import interpret
from monograph.ir.errors import ConfigError, RuntimeInputError
from monograph.ir.types import DType
from monograph.ir.weights import Weights
from monograph.passes.pipelines import train as train_pipeline
from monograph.resolve import resolve
from monograph.training.loop import train
from monograph.training.loss import with_loss
from monograph.training.masked import Masked, choose, hide

pytestmark = pytest.mark.slow

WORDS = "zero one two three four five six seven eight nine".split()
SIZES: dict[str, Any] = {"dim": 32, "heads": 2, "ffn": 64, "layers": 1, "max_positions": 64}


def counting(lines: int = 300) -> str:
    """Lines that count up from anywhere, so that rows differ."""
    rng = np.random.default_rng(0)
    rows = [[WORDS[(a + i) % 10] for i in range(n)] for a, n in zip(*rng.integers(5, 25, (2, lines)), strict=True)]
    return "".join(f"{' '.join(r)}\n\n" for r in rows)


@pytest.fixture(scope="module")
def data() -> Masked:
    return Masked.of([counting()], vocab=100, held_out=0.1)


def bert(data: Masked, **changes: Any) -> Model:
    return load_family("bert", "masked-lm")(vocab=data.vocab, **{**SIZES, **changes})


# -- batches -------------------------------------------------------------------------------------------------------


def test_rows_hold_the_text_and_labels_what_was_hidden(data: Masked) -> None:
    t = data.tokenizer
    ids, _ = data.train.window(0, len(data.train))
    text = ",".join(map(str, ids))
    for batch in itertools.islice(data.batches(4, 40, seed=1), 20):
        x, labels = batch["input_ids"], batch["labels"]
        whole = np.where(labels == -100, x, labels)
        for row in whole:
            assert (row[0], row[-1]) == (t.cls_id, t.sep_id)
            assert ",".join(map(str, row[1:-1])) in text
        free = ~np.isin(whole, list(t.special_ids))
        assert not (labels[~free] != -100).any(), "special tokens are never chosen"
        assert ((labels != -100).sum(1) == np.round(0.15 * free.sum(1))).all()
        assert set(batch) == {"input_ids", "attention_mask", "position_ids", "token_type_ids", "labels"}
        assert (batch["attention_mask"] == 1).all()
        assert (batch["position_ids"] == np.arange(40)).all()
        assert (batch["token_type_ids"] == 0).all()


def test_of_the_chosen_80_10_10() -> None:
    rng, row = np.random.default_rng(0), np.full(60_000, 7)
    chosen = np.zeros(60_000, bool)
    chosen[:50_000] = True
    found = hide(row, chosen, 4, np.arange(5, 25), rng)
    assert (found[50_000:] == 7).all()
    # Standard deviations of these shares are below 0.002; one twentieth of the strange tokens is the token itself.
    share = {i: float((found[:50_000] == i).mean()) for i in (4, 7, 9)}
    assert share[4] == pytest.approx(0.8, abs=0.01)
    assert share[7] == pytest.approx(0.105, abs=0.01)
    assert share[9] == pytest.approx(0.005, abs=0.002)
    assert set(found[:50_000]) == {4, *range(5, 25)}


def test_words_are_chosen_as_a_whole() -> None:
    words = np.array([9, 0, 0, 0, 1, 2, 2, 3, 4, 4, 4, 4, 5, 9])
    free = np.array([False, *[True] * 12, False])
    seen: set[tuple[int, ...]] = set()
    for seed in range(200):
        chosen = choose(free, words, 0.3, np.random.default_rng(seed))
        names = set(words[chosen])
        assert (chosen == (np.isin(words, list(names)) & free)).all()
        assert chosen.sum() <= round(0.3 * 12)
        seen.add(tuple(sorted(names)))
    assert set(itertools.chain(*seen)) == {0, 1, 2, 3, 4, 5}
    longest = choose(np.ones(9, bool), np.zeros(9, int), 0.15, np.random.default_rng(0))
    assert longest.all(), "a word longer than the share is taken where there is no other"
    assert not choose(np.zeros(3, bool), np.arange(3), 0.15, np.random.default_rng(0)).any()


@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe"])
def test_pieces_of_a_word_go_together_in_batches(kind: str) -> None:
    """Letters are tokens here, so that words have several; what a word is, the tokenizer says of the whole text."""
    text = "".join(f"{'bcd' * (i % 3)}ef ghi, jk {chr(97 + i % 9)} [MASK]\n\n" for i in range(200))
    tokenizer = train_tokenizer(kind, [" ".join("abcdefghijk,[]MASK")], 300, "masked-lm")
    if kind == "wordpiece":
        tokenizer.core.model.continuing_subword_prefix = ""  # So that each letter is also a piece within a word.
    data = Masked.of([text], tokenizer, whole_word=True, share=0.3, held_out=0.0)
    ids, words = data.train.window(0, len(data.train))
    assert len(np.unique(words)) < len(words) / 1.5
    batch = next(data.batches(8, 60))
    assert (batch["labels"] != tokenizer.mask_id).all(), "a mask that is written in the text is text"
    whole = np.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
    windows = np.lib.stride_tricks.sliding_window_view(ids, 58)
    for row, labels in zip(whole, batch["labels"], strict=True):
        at = int(np.flatnonzero((windows == row[1:-1]).all(1))[0])
        of, chosen = words[at : at + 58], labels[1:-1] != -100
        assert chosen.any()
        for word in np.unique(of):
            assert len(set(chosen[of == word])) == 1


def test_a_step_depends_on_seed_and_number_only(data: Masked) -> None:
    first = list(itertools.islice(data.batches(4, 32, seed=3), 60))
    later = list(itertools.islice(data.batches(4, 32, seed=3, start=40), 20))
    for a, b in zip(first[40:], later, strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not np.array_equal(first[0]["labels"], next(data.batches(4, 32, seed=4))["labels"])


def test_held_out_rows_are_masked_the_same_way_every_time(data: Masked) -> None:
    rows = [
        np.concatenate([b[k] for b in data.held_out_batches(n, 32)]) for n in (3, 8) for k in ("input_ids", "labels")
    ]
    assert np.array_equal(rows[0], rows[2])
    assert np.array_equal(rows[1], rows[3])
    whole = np.where(rows[1] == -100, rows[0], rows[1])
    masks = np.concatenate([b["attention_mask"] for b in data.held_out_batches(3, 32)])
    ids = data.held_out.window(0, len(data.held_out))[0]
    t = data.tokenizer
    body = np.concatenate([r[m == 1][1:-1] for r, m in zip(whole, masks, strict=True)])
    assert np.array_equal(body, ids)
    assert masks[-1].min() == 0, "the last row is padded"
    assert (rows[0][-1][masks[-1] == 0] == t.pad_id).all()
    assert (rows[1][masks == 0] == -100).all()


def test_what_cannot_be_masked(data: Masked) -> None:
    tokenizer = train_tokenizer("byte-bpe", ["a"], 300)
    with pytest.raises(ConfigError, match="the tokenizer has no cls_token, sep_token, mask_token"):
        Masked.of(["some text"], tokenizer)
    with pytest.raises(CorpusError, match="1 texts hold nothing but white space"):
        Masked.of([" \n"])
    with pytest.raises(CorpusError, match=r"the training part has \d+ tokens, fewer than the 99998 of a row"):
        next(data.batches(1, 100_000))
    with pytest.raises(ConfigError, match="length is 2, expected at least 3"):
        next(data.batches(1, 2))


def test_shards_are_masked_too(tmp_path: Path) -> None:
    from monograph.data import Recipe, prepare

    (tmp_path / "text").mkdir()
    lines = [json.dumps({"text": p}) for p in counting(200).split("\n\n") if p]
    (tmp_path / "text" / "a.jsonl").write_text("\n".join(lines))
    recipe = {
        "input": {"paths": [str(tmp_path / "text")]},
        "clean": {"filters": []},
        "split": {"held_out": 0.2},
        "tokenizer": {"vocab": 300, "task": "masked-lm"},
    }
    prepare(Recipe.of(recipe), tmp_path / "run")
    data = Masked.open(tmp_path / "run")
    t, batch = data.tokenizer, next(data.batches(4, 32))
    whole = np.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
    assert (whole[:, 0] == t.cls_id).all()
    assert (batch["input_ids"] == t.mask_id).any()
    assert set(t.decode(whole.ravel().tolist()).split()) & set(WORDS)
    assert (
        sum((b["attention_mask"].sum(1) - 2).sum() for b in data.held_out_batches(4, 32)) == data.held_out.shards.tokens
    )
    with pytest.raises(ConfigError, match="shards do not say where words begin"):
        Masked.open(tmp_path / "run", whole_word=True)


# -- the loss ------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_hidden_tokens_by_hand(data: Masked) -> None:
    model = bert(data)
    graph = model.graph()
    weights = Weights.initialize(graph, 2)
    module = to_torch(train_pipeline(with_loss(graph)), weights).eval()
    *_, batch = data.held_out_batches(4, 32)
    assert batch["attention_mask"].min() == 0
    losses: list[float] = []
    for i, mask in enumerate(batch["attention_mask"]):
        alone = {k: batch[k][i : i + 1, : mask.sum()] for k in graph.inputs}
        logits = interpret(graph, alone, weights.numpy)["logits"][0].astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        labels = batch["labels"][i, : mask.sum()]
        losses += [-log_p[s, v] for s, v in enumerate(labels) if v != -100]
    with torch.no_grad():
        found = module(**to_inputs(batch))["loss"].item()
    assert len(losses) > 4
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


def test_only_rows_that_count_reach_the_vocabulary(data: Masked, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head and its loss are one op, in chunks of 64 rows at least; gradients are those of the plain."""
    model = bert(data, dropout=0.0)
    graph, batch = model.graph(DType.f64), next(data.batches(8, 64))
    weights = Weights.initialize(graph, 2)
    fused = to_torch(train_pipeline(with_loss(graph)), weights)
    plain = to_torch(train_pipeline(with_loss(graph, keep_logits=True)), weights)
    targets = [{n.target for n in m.graph.nodes} for m in (fused, plain)]
    assert [chunked.linear_cross_entropy in t for t in targets] == [True, False]
    rows: list[int] = []

    def counted(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if w.shape[0] == data.vocab:
            rows.append(len(x))
        return torch.mm(x, w.t())

    for name in ("product", "plain_product"):  # Whole chunks, and the last one.
        monkeypatch.setattr(chunked, name, counted)
    losses = [m(**to_inputs(batch))["loss"] for m in (fused, plain)]
    assert sum(rows) == (batch["labels"] != -100).sum() < batch["labels"].size / 5
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    for loss in losses:
        loss.backward()
    expected = dict(plain.named_parameters())
    assert "bert.embeddings.word_embeddings.weight" in expected
    for name, p in fused.named_parameters():
        torch.testing.assert_close(p.grad, expected[name].grad, rtol=1e-9, atol=1e-12, msg=name)


# -- checkpoints ---------------------------------------------------------------------------------------------------


def test_heads_of_a_family() -> None:
    mlm = load_family("bert", "masked-lm")
    assert (mlm.name, mlm.task) == ("bert", "masked-lm")
    assert load_family("bert") == load_family("bert", "feature-extraction")
    names = mlm(vocab=20, **SIZES).graph().params
    assert [k for k in names if k.startswith("cls")] == [
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
        "cls.predictions.bias",
    ]
    with pytest.raises(ConfigError, match="bert has no head for 'masked-ml', did you mean 'masked-lm'"):
        load_family("bert", "masked-ml")
    with pytest.raises(ConfigError, match="llama has no head for 'masked-lm'"):
        load_family("llama", "masked-lm")


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("BertModel", "feature-extraction"),
        ("BertForMaskedLM", "masked-lm"),
        ("BertForSequenceClassification", "sequence-classification"),
    ],
)
def test_config_json_says_which_head(name: str, task: str, tmp_path: Path) -> None:
    config = load_family("bert")(vocab=20, **SIZES).config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "bert", "architectures": [name]}))
    assert resolve(str(tmp_path / "config.json")).task == task


def test_an_architecture_without_a_head_is_refused(tmp_path: Path) -> None:
    config = {**load_family("bert")(vocab=20, **SIZES).config.to_dict(), "model_type": "bert"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMultipleChoice"]}))
    with pytest.raises(ConfigError, match="has the architecture BertForMultipleChoice, which bert has no head for"):
        resolve(str(tmp_path / "config.json"))


def test_transformers_reads_what_was_trained(data: Masked, tmp_path: Path) -> None:
    trained = train(bert(data), data, steps=5, batch=4, length=32, folder=tmp_path, progress=False, device="cpu")
    theirs = transformers.BertForMaskedLM.from_pretrained(tmp_path).eval()
    assert theirs.cls.predictions.decoder.weight is theirs.bert.embeddings.word_embeddings.weight
    assert theirs.config.vocab_size == data.vocab
    graph, batch = trained.graph(), next(data.batches(3, 32, seed=5))
    assert trained.weights is not None
    found = interpret(graph, {k: batch[k] for k in graph.inputs}, trained.weights.numpy)["logits"]
    given = {k: torch.from_numpy(v) for k, v in batch.items()}
    with torch.no_grad():
        expected = theirs(**given)
    np.testing.assert_allclose(found, expected.logits.numpy(), atol=1e-5)
    log_p = found - np.log(np.exp(found).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_p, np.maximum(batch["labels"], 0)[..., None], -1)[..., 0]
    assert expected.loss.item() == pytest.approx(-picked[batch["labels"] != -100].mean(), rel=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.mask_token_id == data.tokenizer.mask_id
    encoder = load(tmp_path, task="feature-extraction")
    assert encoder.weights is not None
    assert "embeddings.word_embeddings.weight" in encoder.weights
    assert list(encoder.graph().outputs) == ["last_hidden_state"]


# -- recipes -------------------------------------------------------------------------------------------------------


RECIPE = """
[model]
family = "bert"
task = "masked-lm"
config = { dim = 48, heads = 4, ffn = 96, layers = 1, max_positions = 40, dropout = 0.0 }
[data]
paths = ["text.txt"]
[tokenizer]
kind = "wordpiece"
vocab = 100
[train]
steps = 150
batch = 16
length = 24
learning_rate = 4e-3
evaluate_every = 75
device = "cpu"
"""


def repeating() -> str:
    """Passages that say one word again and again."""
    rng = np.random.default_rng(1)
    return "".join(
        f"{' '.join([WORDS[i]] * n)}\n\n" for i, n in zip(*rng.integers((0, 60), (10, 90), (300, 2)).T, strict=True)
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("masked")
    (folder / "text.txt").write_text(repeating())
    (folder / "recipe.toml").write_text(RECIPE)
    saved = torch.get_num_threads()
    torch.set_num_threads(1)
    printed = json.loads(call("train", folder / "recipe.toml", folder / "run", "--json").stdout)
    torch.set_num_threads(saved)
    return folder / "run", printed


def test_it_learns_to_look_around(run: tuple[Path, dict[str, Any]]) -> None:
    assert run[1]["measured"][-1]["metrics"]["accuracy"] > 0.9
    assert run[1]["held_out_tokens"] > 100


def test_the_folder_builds_verifies_and_fills_masks(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    call("build", run[0], tmp_path / "built")
    rows = json.loads(call("verify", run[0], tmp_path / "built", "--json").stdout)["rows"]
    assert {r["backend"] for r in rows} == {"torch", "ort"}
    text = "two two [MASK] two two two [MASK] two"
    (filled,) = json.loads(call("run", tmp_path / "built", text, "--json").stdout)
    assert [m[0]["token"] for m in filled["masks"]] == ["two", "two"]
    assert all(len(m) == 5 and m[0]["probability"] > 0.5 for m in filled["masks"])
    model = load(run[0])
    ids = np.array([model.tokenizer.encode(text)])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    assert model.weights is not None
    logits = interpret(model.graph(), {**inputs, "position_ids": np.arange(ids.size)[None]}, model.weights.numpy)[
        "logits"
    ]
    p = torch.from_numpy(logits[0][ids[0] == model.tokenizer.mask_id]).double().softmax(-1)
    for guesses, row in zip(filled["masks"], p, strict=True):
        assert [g["id"] for g in guesses] == row.argsort(descending=True)[:5].tolist()
        np.testing.assert_allclose([g["probability"] for g in guesses], row.sort(descending=True)[0][:5], atol=1e-5)
    lines = call("run", tmp_path / "built", text, "six six [MASK] six").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["two", "two", "six"]
    assert "text 0 has no mask [MASK] to fill" in call("run", tmp_path / "built", "one two", code=1).output
    engine = Engine.open(tmp_path / "built")
    assert engine.fill(text, top=2)[1][0].token == "two"
    with pytest.raises(RuntimeInputError, match="bert is a masked-lm model, not sequence-classification"):
        engine.classify(text)
    with pytest.raises(RuntimeInputError, match="top is -1, expected at least 1"):
        engine.fill(text, top=-1)
    with pytest.raises(RuntimeInputError, match="text 1 has 43 tokens, expected 1 to 40"):
        engine.fill([text, "one [MASK] " * 20 + "one"])
    assert "--chat goes with models that generate" in call("run", tmp_path / "built", "[MASK]", "--chat", code=1).output


def test_a_run_goes_on_with_the_tokenizer_it_began_with(
    run: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training a WordPiece vocabulary twice need not give the same one."""
    from monograph.runs import follow
    from monograph.training import masked
    from monograph.training.recipe import Recipe

    changes = {"train": {"steps": 4, "checkpoint_every": 2, "keep": 9}}
    recipe = Recipe.read(run[0].parent / "recipe.toml", changes)
    first = follow(recipe, tmp_path / "run", progress=False).model
    assert first.weights is not None
    expected = {k: first.weights.numpy(k).copy() for k in first.weights}
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    monkeypatch.setattr(masked, "train_tokenizer", lambda *given: pytest.fail("a second tokenizer"))
    again = follow(recipe, tmp_path / "run", resume=True, progress=False)
    assert [s.step for s in again.steps] == [3, 4]
    assert again.model.weights is not None
    for name, value in expected.items():
        assert np.array_equal(again.model.weights.numpy(name), value), name


def test_rows_longer_than_the_positions_are_refused(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    recipe = run[0].parent / "recipe.toml"
    said = call("train", recipe, tmp_path / "long", "--length", 41, code=1).output
    assert "length is 41, but the model has 40 positions" in said
