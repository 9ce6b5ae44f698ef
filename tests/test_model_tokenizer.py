"""A model that comes with a tokenizer is trained on data of that tokenizer, or the run says what is different."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from monograph.data import Dataset
from monograph.data import Recipe as DataRecipe
from monograph.data import prepare as prepare_data
from monograph.data import train_tokenizer as learn
from monograph.frontends.dsl import Model, load_family
from monograph.frontends.huggingface import save_pretrained
from monograph.frontends.tokenizer import Tokenizer
from monograph.ir.errors import ConfigError
from monograph.ir.weights import Weights
from monograph.runs import prepare
from monograph.training.corpus import Corpus
from monograph.training.finetune import distill
from monograph.training.masked import Masked
from monograph.training.recipe import Recipe

pytestmark = pytest.mark.slow

TASKS = {"gpt2": "causal-lm", "bert": "masked-lm"}
KINDS = {"gpt2": "byte-bpe", "bert": "wordpiece"}
TEXTS = [f"The {'cat' if i % 3 else 'dog'} lay on mat {i % 11}, and rug {i % 7} was free. {i}" for i in range(80)]
OTHER = [f"Zebras quietly jump over box number {i}; would you?" for i in range(80)]


def model_of(family: str, tokenizer: Tokenizer | None, folder: Path) -> None:
    """A checkpoint with room for any tokenizer here."""
    sizes = {"dim": 16, "layers": 1, "heads": 2, "max_positions": 32, **({"ffn": 24} if family == "bert" else {})}
    model = load_family(family, TASKS[family])(vocab=400, **sizes)
    model.weights, model.tokenizer = Weights.initialize(model.graph(), 1), tokenizer
    save_pretrained(model, folder)


@pytest.fixture(scope="module", params=list(TASKS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Shards, and three checkpoints: with their tokenizer, with another one, without one."""
    family, folder = request.param, tmp_path_factory.mktemp(request.param)
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    (folder / "a.txt").write_text("\n\n".join(TEXTS))
    learn(KINDS[family], TEXTS, 300, TASKS[family]).save(folder / "tokenizer")
    tables = {
        "input": {"paths": [str(folder / "a.jsonl")]}, "split": {"held_out": 0.2}, "clean": {"filters": []},
        "tokenizer": {"path": str(folder / "tokenizer"), "task": TASKS[family]},
    }  # fmt: skip
    prepare_data(DataRecipe.of(tables), folder / "shards")
    same = Tokenizer.open(folder / "tokenizer")
    for name, tokenizer in (("same", same), ("other", learn(KINDS[family], OTHER, 300, TASKS[family])), ("none", None)):
        model_of(family, tokenizer, folder / name)
    return family, folder


def prepared(folder: Path, model: str, **tables: Any) -> tuple[Model, Any]:
    tables = {"data": {"kind": "shards", "paths": ["shards"]}, "train": {"steps": 1}, **tables}
    return prepare(Recipe.of({"model": {"path": model}, **tables}, folder=folder))[:2]


def test_shards_of_the_models_tokenizer_are_taken(made: tuple[str, Path]) -> None:
    _, folder = made
    own = Tokenizer.open(folder / "shards" / "shards" / "tokenizer")
    for name in ("same", "none"):
        model, source = prepared(folder, name)
        assert source.tokenizer.difference(own) == ""
        assert (model.tokenizer is None) == (name == "none")


def test_shards_of_another_tokenizer_are_refused(made: tuple[str, Path]) -> None:
    _, folder = made
    own = Tokenizer.open(folder / "shards" / "shards" / "tokenizer").core.get_vocab()
    theirs = Tokenizer.open(folder / "other").core.get_vocab()
    moved = {t for t in own.keys() | theirs.keys() if own.get(t) != theirs.get(t)}
    with pytest.raises(ConfigError) as e:
        prepared(folder, "other")
    assert e.value.place == str(folder / "shards")
    tokens = f"{len(moved)} tokens have other ids, such as {min(moved)!r}"
    assert e.value.what.startswith(f"the data has another tokenizer than the model's: {tokens}")
    with pytest.raises(ConfigError, match="the data has another tokenizer"):
        prepared(folder, "same", tokenizer={"path": "other"})
    _, source = prepared(folder, "other", tokenizer={"path": "shards/shards/tokenizer"})
    assert source.tokenizer.core.get_vocab() == own, "asked for by name"


def test_text_is_read_with_the_models_tokenizer(made: tuple[str, Path]) -> None:
    _, folder = made
    (folder / "rows.tsv").write_text("".join(f"{i % 2}\t{t}\n" for i, t in enumerate(TEXTS)))
    for name in ("same", "other"):
        expected = Tokenizer.open(folder / name)
        _, source = prepared(folder, name, data={"paths": ["a.txt"]})
        assert source.tokenizer.difference(expected) == ""
    if made[0] == "bert":
        model, source = prepared(folder, "other", data={"kind": "labelled", "paths": ["rows.tsv"]})
        assert model.task == "sequence-classification"
        assert source.train.texts[0].tolist() in [expected.encode(t) for t in TEXTS]


def test_a_teacher_reads_its_own_tokens_only(tmp_path: Path) -> None:
    corpus = Corpus.of("\n\n".join(TEXTS), vocab=300)
    student, teacher = (load_family("gpt2")(vocab=300, dim=16, layers=1, heads=2, max_positions=32) for _ in range(2))
    teacher.weights = Weights.initialize(teacher.graph(), 1)
    settings: dict[str, Any] = {"steps": 1, "batch": 2, "length": 16, "progress": False, "device": "cpu"}
    teacher.tokenizer = Corpus.of("\n\n".join(OTHER), vocab=300).tokenizer
    with pytest.raises(ConfigError, match=r"^the data has another tokenizer than the teacher's: \d+ tokens have other"):
        distill(student, teacher, corpus, **settings)
    teacher.tokenizer = corpus.tokenizer
    assert distill(student, teacher, corpus, **settings).model.tokenizer is corpus.tokenizer


# -- what makes two tokenizers different -----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "task"), [("byte-bpe", "chat"), ("unigram", "seq2seq"), ("wordpiece", "masked-lm")])
def test_a_tokenizer_is_its_own_copy_in_a_folder(kind: str, task: str, tmp_path: Path) -> None:
    tokenizer = learn(kind, TEXTS, 420, task)
    tokenizer.save(tmp_path)
    assert tokenizer.difference(Tokenizer.open(tmp_path)) == ""


def test_what_is_different_is_named() -> None:
    def bpe(merges: list[tuple[str, str]], lower: bool = False) -> Tokenizer:
        names = ["a", "b", "c", "ab", "bc", "abc"]
        core = tokenizers.Tokenizer(tokenizers.models.BPE({t: i for i, t in enumerate(names)}, merges))
        if lower:
            core.normalizer = tokenizers.normalizers.Lowercase()
        return Tokenizer(core)

    first = bpe([("a", "b"), ("ab", "c")])
    assert first.difference(bpe([("a", "b"), ("ab", "c")])) == ""
    assert first.encode("abc") != (second := bpe([("b", "c"), ("a", "b")])).encode("abc")
    assert first.difference(second) == "the ids are the same, but not how a text is cut (model)"
    lower = bpe([("a", "b"), ("ab", "c")], lower=True)
    assert first.difference(lower) == "the ids are the same, but not how a text is cut (normalizer)"
    longer = bpe([("a", "b"), ("ab", "c")])
    longer.core.add_tokens(["d", "e"])
    assert first.difference(longer) == "2 tokens have other ids, such as 'd': none and 6"
    assert longer.difference(first) == "2 tokens have other ids, such as 'd': 6 and none"


def test_shards_are_opened_for_a_tokenizer(made: tuple[str, Path]) -> None:
    family, folder = made
    source = {"gpt2": Dataset, "bert": Masked}[family]
    with pytest.raises(ConfigError, match="the data has another tokenizer than the model's"):
        source.open(folder / "shards", Tokenizer.open(folder / "other"))
    same = Tokenizer.open(folder / "same")
    assert source.open(folder / "shards", same).vocab == same.size
