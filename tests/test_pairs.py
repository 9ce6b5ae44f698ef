"""Pairs: what is read and held out, what a batch holds, the loss by hand, and a recipe from training to translation."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import call
from monograph.backends.torch import to_inputs, to_torch
from monograph.data.batch import divided
from monograph.data.errors import CorpusError
from monograph.data.tokenizers import train as train_tokenizer
from monograph.frontends.dsl import Model, load_family
from monograph.ir import interpret
from monograph.ir.errors import ConfigError, MonographError
from monograph.ir.weights import Weights
from monograph.passes.pipelines import train as train_pipeline
from monograph.training.loss import with_loss
from monograph.training.pairs import Pairs, hold_out
from monograph.training.ragged import once, order
from monograph.training.recipe import Recipe

pytestmark = pytest.mark.slow

WORDS = "red blue green cat dog sun moon tree".split()
FAMILIES: dict[str, dict[str, Any]] = {
    "transformer2017": {"dim": 16, "heads": 2, "ffn": 24, "layers": 1, "decoder_layers": 1, "dropout": 0.1},
    "lstm_seq2seq": {"dim": 16, "layers": 1, "dropout": 0.1},
}


def sentences(count: int, seed: int = 0, most: int = 6) -> list[tuple[str, str]]:
    """Sentences and their words in reverse."""
    rng = np.random.default_rng(seed)
    rows = [list(rng.choice(WORDS, rng.integers(1, most + 1))) for _ in range(count)]
    return [(" ".join(r), " ".join(reversed(r))) for r in rows]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    return Pairs.of(sentences(300), vocab=300, held_out=0.1)


# -- files and parts -----------------------------------------------------------------------------------------------


def test_tsv_and_jsonl_hold_the_same(tmp_path: Path) -> None:
    rows = [("ein Hund", "a dog"), ('eine "Katze"', "a\u2028cat"), ("das Haus", "the house")]
    tsv, jsonl = tmp_path / "a.tsv", tmp_path / "a.jsonl"
    tsv.write_text("\n\n".join(f"{a}\t {b} " for a, b in rows) + "\r\n", encoding="utf-8")
    jsonl.write_text("".join(json.dumps({"source": a, "target": b, "id": 1}) + "\n" for a, b in rows))
    tokenizer = train_tokenizer("byte-bpe", ["a dog"], 300, "seq2seq")
    found = [Pairs.read(p, tokenizer, held_out=0.4) for p in (tsv, jsonl)]
    for read in found:
        assert read.references == (rows[2],)
        texts = [(tokenizer.decode(read.train.source[i]), tokenizer.decode(read.train.target[i])) for i in range(2)]
        assert texts == rows[:2]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "a\tb\na\tb\tc\n", r"a\.tsv:2: has 3 columns, expected 2: source, a tab, target"),
        ("a.tsv", "a\tb\nab\n", r"a\.tsv:2: has 1 columns"),
        ("a.jsonl", '{"source": "a", "target": "b"}\n{"source": "a"}\n', r"a\.jsonl:2: is not an object whose source"),
        ("a.jsonl", "\n{\n", r"a\.jsonl:2: is not JSON"),
        ("a.jsonl", '{"source": "\\ud83d", "target": "b"}\n', r"a\.jsonl:1: is not JSON: .*surrogates"),
        ("a.tsv", "a\tb\n", r"a\.tsv: of 1 pairs none is left to train on"),
        ("a.tsv", "\n", r"a\.tsv: has no rows"),
        ("a.csv", "a,b\n", r"a\.csv: is neither a \.tsv nor a \.jsonl file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CorpusError, match=message):
        Pairs.read(tmp_path / name)


def test_no_side_of_a_held_out_pair_is_trained_on() -> None:
    first = [("a", "1"), ("b", "2"), ("x  y", "3"), ("c", "z"), ("", "4"), ("x y", "5")]
    second = [("d", "6"), ("e", "6 "), ("f", "9"), ("g", "z")]
    train, kept, removed = hold_out([first, second], 0.25)
    assert kept == [("x y", "5"), ("g", "z")]
    assert train == [("a", "1"), ("b", "2"), ("d", "6"), ("e", "6 "), ("f", "9")]
    assert removed == 3
    assert hold_out([first], 0.0)[1:] == ([], 1)
    with pytest.raises(CorpusError, match="of 2 pairs none is left to train on, with 1 held out"):
        hold_out([[("a", "b"), ("a", "c")]], 0.5)


def test_the_tokenizer_is_learned_from_the_training_side() -> None:
    rows = [*sentences(80), ("quintessential", "quintessential")]
    found = Pairs.of(rows, vocab=400, held_out=0.01)
    assert found.references == (rows[-1],)
    assert len(found.tokenizer.encode("quintessential", add_special=False)) > 6
    assert len(found.tokenizer.encode("green", add_special=False)) == 1


def test_a_tokenizer_must_say_where_a_target_ends() -> None:
    tokenizer = train_tokenizer("wordpiece", ["a b"], 100, "masked-lm")
    with pytest.raises(ConfigError, match="has no end-of-text token"):
        Pairs.of(sentences(9), tokenizer)


# -- batches -------------------------------------------------------------------------------------------------------


def test_a_batch_is_teacher_forcing_padded_on_the_right() -> None:
    tokenizer = train_tokenizer("byte-bpe", ["a b c d e f"], 300, "seq2seq")
    bos, pad, end = 0, 1, 2
    a, b, c, d = (tokenizer.encode(t, add_special=False)[0] for t in "abcd")
    data = Pairs.of([("ab", "c"), ("a", "dcd"), ("</s>", "x")], tokenizer, held_out=0.3)
    batch = next(data.batches(2, 8))
    rows = np.argsort(batch["attention_mask"].sum(1))
    found = {k: v[rows].tolist() for k, v in batch.items()}
    assert found == {
        "input_ids": [[a, end, pad], [a, b, end]],
        "attention_mask": [[1, 1, 0], [1, 1, 1]],
        "position_ids": [[0, 1, 2]] * 2,
        "decoder_input_ids": [[bos, d, c, d], [bos, c, pad, pad]],
        "decoder_attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]],
        "decoder_position_ids": [[0, 1, 2, 3]] * 2,
        "labels": [[d, c, d, end], [c, end, -100, -100]],
    }
    (kept,) = data.held_out_batches(2, 8)
    assert kept["input_ids"].shape == (1, 5), "the name of a special token in a text is four letters"
    assert end not in kept["input_ids"][0, :4]


def test_a_step_depends_on_seed_and_number_only(pairs: Pairs) -> None:
    first = list(itertools.islice(pairs.batches(8, 32, seed=3), 80))
    later = list(itertools.islice(pairs.batches(8, 32, seed=3, start=50), 30))
    other = next(pairs.batches(8, 32, seed=4))
    for a, b in zip(first[50:], later, strict=True):
        assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not np.array_equal(first[0]["input_ids"], other["input_ids"])


def test_every_row_once_a_pass_and_like_lengths_together() -> None:
    source = np.random.default_rng(0).integers(5, 60, 4000)
    lengths = source, np.maximum(source + np.random.default_rng(1).integers(-4, 5, 4000), 1)

    def padding(batches: Any) -> float:
        return sum(k[r].max() * len(r) for k in lengths for r in batches) / sum(k.sum() for k in lengths) - 1

    for turn in range(2):
        rows = order(lengths, 16, 0, turn)
        assert sorted(rows.ravel()) == list(range(4000))
        assert padding(rows) < 0.15
    assert padding(np.random.default_rng(1).permutation(4000).reshape(-1, 16)) > 0.7
    assert not np.array_equal(order((lengths[0],), 16, 0, 0), order((lengths[0],), 16, 0, 1))
    few = order((np.array([3, 1, 2]),), 7, 0, 0)
    assert few.shape == (1, 7)
    assert set(few.ravel()) == {0, 1, 2}
    assert sorted(i for rows in once((lengths[0],), 7, list) for i in rows) == list(range(4000))


def test_pairs_that_are_too_long_are_left_out_and_counted() -> None:
    tokenizer = train_tokenizer("byte-bpe", ["x"], 300, "seq2seq")
    # With the end of text on each side: 4 and 2, 2 and 4, 4 and 4, 5 and 2, 2 and 5 tokens.
    rows = [("abc", "d"), ("e", "fgh"), ("ijk", "lmn"), ("opqr", "s"), ("t", "uvwx"), ("A", "B"), ("CDEF", "G")]
    data = Pairs.of(rows, tokenizer, held_out=0.25)
    assert data.sizes(4) == {"train_pairs": 5, "held_out_pairs": 2, "too_long_pairs": 3}
    assert data.sizes(5) == {"train_pairs": 5, "held_out_pairs": 2}
    batch = next(data.batches(3, 4))
    assert batch["input_ids"].shape == (3, 4)
    assert [len(b["labels"]) for b in data.held_out_batches(3, 4)] == [1]
    with pytest.raises(CorpusError, match="none of 2 pairs has at most 1 tokens on each side"):
        next(data.batches(3, 1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_loss_of_a_batch_is_that_of_its_rows_computed_by_hand(name: str, smoothing: float, pairs: Pairs) -> None:
    """Each pair alone through the NumPy reference, without padding: log-probabilities of target and end, by hand."""
    model = load_family(name)(vocab=pairs.vocab, **FAMILIES[name])
    graph = model.graph()
    weights = Weights.initialize(graph, 2)
    module = to_torch(train_pipeline(with_loss(graph, label_smoothing=smoothing)), weights).eval()
    batch = next(
        b for b in pairs.batches(8, 32, seed=1) if (b["labels"] == -100).any() and b["attention_mask"].min() < 1
    )
    losses: list[float] = []
    for row in divided(batch, 8):
        sizes = row["attention_mask"].sum(), row["decoder_attention_mask"].sum()
        alone = {k: row[k][:, : sizes[k.startswith("decoder_")]] for k in graph.inputs}
        logits = interpret(graph, alone, weights.numpy)["logits"][0].astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        labels = row["labels"][0, : sizes[1]]
        picked = log_p[np.arange(len(labels)), labels]
        losses += list(-(1 - smoothing) * picked - smoothing * log_p.mean(-1))
    with torch.no_grad():
        found = module(**to_inputs({k: batch[k] for k in [*graph.inputs, "labels"]}))["loss"].item()
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


# -- recipes -------------------------------------------------------------------------------------------------------


RECIPE = """
[model]
family = "transformer2017"
config = { dim = 64, heads = 4, ffn = 128, layers = 2, decoder_layers = 2, dropout = 0.0 }
[data]
kind = "pairs"
paths = ["pairs.tsv"]
[tokenizer]
vocab = 290
[train]
steps = 500
batch = 32
length = 16
learning_rate = 2e-3
evaluate_every = 250
device = "cpu"
[metrics]
translate = 20
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """(the folder of a run that learned to turn words around, what the command printed)."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in sentences(1500, 1, most=4)))
    (folder / "recipe.toml").write_text(RECIPE)
    saved = torch.get_num_threads()
    torch.set_num_threads(1)
    printed = json.loads(call("train", folder / "recipe.toml", folder / "run", "--json").stdout)
    torch.set_num_threads(saved)
    return folder / "run", printed


def test_it_learns_to_turn_words_around(run: tuple[Path, dict[str, Any]]) -> None:
    folder, printed = run
    import sacrebleu

    rows = [line.split("\t") for line in (folder / "translations.tsv").read_text().splitlines()]
    assert rows[0] == ["source", "reference", "hypothesis"]
    assert len(rows) == 21
    assert all(reference.split() == source.split()[::-1] for source, reference, _ in rows[1:])
    right = sum(reference == hypothesis for _, reference, hypothesis in rows[1:])
    assert right >= 15
    references, hypotheses = [r[1] for r in rows[1:]], [r[2] for r in rows[1:]]
    assert printed["metrics"]["bleu"] == sacrebleu.corpus_bleu(hypotheses, [references]).score
    assert printed["metrics"]["chrf"] == sacrebleu.corpus_chrf(hypotheses, [references]).score
    assert printed["metrics"]["chrf"] > 90
    assert printed["held_out_pairs"] == 75
    # Short sentences come back: every training pair with a side of a held-out one is gone.
    assert printed["train_pairs"] + printed["removed_pairs"] == 1425


def test_the_folder_builds_verifies_and_translates(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = run[0]
    config = json.loads((folder / "config.json").read_text())
    ids = {k: config[f"{k}_token_id"] for k in ("bos", "pad", "eos", "decoder_start")}
    assert ids == {"bos": 0, "pad": 1, "eos": 2, "decoder_start": 0}
    call("build", folder, tmp_path / "built")
    call("verify", folder, tmp_path / "built")
    assert call("run", tmp_path / "built", "cat dog sun").stdout.strip() == "sun dog cat"
    both = json.loads(call("run", tmp_path / "built", "cat dog sun", "tree moon", "--json").stdout)
    assert [r["text"].strip() for r in both] == ["sun dog cat", "moon tree"]
    assert call("run", tmp_path / "built", "tree red", "moon blue").stdout.split("\n")[:2] == ["red tree", "blue moon"]


def test_what_a_recipe_cannot_say() -> None:
    values: dict[str, Any] = {
        "model": {"family": "transformer2017"},
        "train": {"steps": 1},
        "metrics": {"translate": 3},
    }
    with pytest.raises(MonographError, match=r"metrics\.translate needs data\.kind pairs"):
        Recipe.of({**values, "data": {"paths": ["a.txt"]}})
    with pytest.raises(MonographError, match=r"data\.held_out above 0"):
        Recipe.of({**values, "data": {"kind": "pairs", "paths": ["a.tsv"], "held_out": 0.0}})
    with pytest.raises(MonographError, match=r"has no field 'beams'"):
        Recipe.of({**values, "data": {"paths": ["a.txt"]}, "metrics": {"beams": 4}})


def test_pairs_do_not_train_a_language_model(pairs: Pairs) -> None:
    from monograph.training.loop import train

    model: Model = load_family("llama")(vocab=300, dim=16, ffn=24, layers=1, heads=2)
    with pytest.raises(ConfigError, match="llama is a causal-lm model; this data trains seq2seq-lm models"):
        train(model, pairs, steps=1, progress=False)


def test_the_recipes_of_the_documentation_and_the_examples_are_recipes() -> None:
    root = Path(__file__).parent.parent
    page = (root / "docs" / "tasks.md").read_text()
    found = [Recipe.of(tomllib.loads(block)) for block in re.findall(r"```toml[^\n]*\n(.*?)```", page, re.DOTALL)]
    assert [r.data.kind for r in found] == ["pairs", "text", "labelled"]
    assert {Recipe.read(path).data.kind for path in (root / "examples" / "recipes").glob("*.toml")} >= {"pairs", "text"}
