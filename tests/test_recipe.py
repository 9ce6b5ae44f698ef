"""Recipes of training runs: every field by name, type and range, what a run keeps of it, and the command."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from monograph.cli import app
from monograph.data.tables import changes_of, read_toml
from monograph.frontends.dsl import load_family
from monograph.ir.errors import ConfigError
from monograph.runs import prepare
from monograph.training import recipe as recipe_tables
from monograph.training.corpus import Corpus
from monograph.training.finetune import distill
from monograph.training.loop import train
from monograph.training.recipe import PYTHON, Recipe
from monograph.training.settings import Settings
from monograph.training.source import check_fit
from training_runs import TEXT, assert_same_weights
from typer.testing import CliRunner

pytestmark = pytest.mark.slow

BASE: dict[str, Any] = {"model": {"family": "llama"}, "data": {"paths": ["a.txt"]}, "train": {"steps": 4}}
FULL: dict[str, Any] = {
    "model": {"path": "hub/id"},
    "data": {"kind": "preferences", "paths": ["a.jsonl"]},
    "train": {"steps": 4, "device": "cpu"},
    "lora": {"rank": 4},
    "dpo": {"beta": 0.2},
}
GOOD: dict[str, dict[str, Any]] = {"distill": {"teacher": "t"}, "data": {"paths": ["a"]}, "train": {"steps": 4}}


TYPES = {f.name: getattr(recipe_tables, str(f.type).removesuffix(" | None")) for f in dataclasses.fields(Recipe)}


def kinds() -> list[tuple[str, str, str]]:
    """(table, field, type) of every field there is."""
    return [(table, f.name, str(f.type)) for table, kind in TYPES.items() for f in dataclasses.fields(kind)]


def with_field(table: str, field: str, value: Any) -> dict[str, Any]:
    return {**BASE, table: {**BASE.get(table, {}), **GOOD.get(table, {}), field: value}}


WRONG = {"str": (3, "a text"), "int": (1.5, "a whole number"), "float": ("x", "a number"), "bool": (1, "true or false")}


@pytest.mark.parametrize(("table", "field", "kind"), kinds(), ids=lambda x: x)
def test_every_field_by_name_and_type(table: str, field: str, kind: str) -> None:
    plain = kind.removesuffix(" | None")
    if plain.startswith("tuple"):
        value, words = "x", "a list"
    elif plain.startswith("dict"):
        value, words = "x", "a table"
    else:
        value, words = WRONG[plain]
    message = rf"^r\.toml: {table}\.{field} is {re.escape(repr(value))}, expected {words}"
    with pytest.raises(ConfigError, match=message):
        Recipe.of(with_field(table, field, value), "r.toml")
    wrong = field + "z"
    with pytest.raises(ConfigError, match=rf"^r\.toml: \[{table}\] has no field '{wrong}', did you mean '{field}'\?"):
        Recipe.of(with_field(table, wrong, value), "r.toml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": {}}, r"no table is called \[modle\], did you mean 'model'\?"),
        ({"train": 3}, r"train is 3, expected a table \[train\]"),
        ({"model": {}}, r"\[model\] needs either path or family"),
        ({"model": {"family": "llama", "path": "x"}}, r"\[model\] needs either path or family"),
        ({"model": {"path": "x", "config": {"dim": 3}}}, "model.config goes with model.family"),
        ({"data": {}}, "data.paths is empty, expected at least one file or folder"),
        ({"data": {"paths": ["a", 3]}}, r"data.paths\[1\] is 3, expected a text"),
        ({"data": {"paths": ["a"], "kind": "texts"}}, "data.kind is 'texts', expected one of .* did you mean 'text'"),
        ({"data": {"paths": ["a"], "held_out": 0.95}}, "data.held_out is 0.95, expected 0.0 to 0.9"),
        ({"data": {"paths": ["a"], "held_out": -0.1}}, "data.held_out is -0.1"),
        ({"data": {"paths": ["a"], "mask": 0.0}}, "data.mask is 0.0, expected 0.01 to 0.9"),
        ({"tokenizer": {"kind": "bpe"}}, "tokenizer.kind is 'bpe', expected one of byte-bpe"),
        ({"tokenizer": {"vocab": -1}}, "tokenizer.vocab is -1, expected 0 to 4000000"),
        ({"train": {}}, "steps is missing: how many updates"),
        ({"train": {"steps": 0}}, "steps is 0, expected more than 0"),
        ({"train": {"steps": 4, "betas": [0.9, 1.5]}}, r"betas are \[0.9, 1.5\]"),
        ({"train": {"steps": 4, "betas": [0.9]}}, r"train.betas is \[0.9\], expected a list of 2"),
        ({"train": {"steps": 4, "schedule": "cosin"}}, "no schedule is called 'cosin', did you mean 'cosine'"),
        ({"lora": {"rank": 0}}, "lora.rank is 0, expected 1 to 65536"),
        ({"lora": {"dropout": 1.0}}, "lora.dropout is 1.0, expected 0.0 to 0.99"),
        ({"dpo": {"beta": 0.0}}, "dpo.beta is 0.0, expected 1e-06 to"),
        ({"dpo": {}}, r"\[dpo\] needs data.kind preferences, not text"),
        ({"distill": {}}, "distill.teacher is missing: the model to learn from"),
        ({"dpo": {}, "distill": {"teacher": "t"}}, r"\[dpo\] and \[distill\] are two kinds of training"),
        ({"lora": {"quantized": True}, "distill": {"teacher": "t"}}, "lora.quantized goes with neither"),
        ({"metrics": {"translate": -1}}, "metrics.translate is -1"),
    ],
)
def test_ranges_and_combinations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^r\.toml: .*{message}"):
        Recipe.of({**BASE, **change}, "r.toml")


@pytest.mark.parametrize("name", ["vocab", "vocab_size"])
def test_a_new_tokenizer_is_as_large_as_the_model(name: str) -> None:
    def made(vocab: Any) -> Any:
        model = {"family": "gpt2", "config": {"dim": 8, "heads": 1, "layers": 1, name: vocab}}
        return prepare(Recipe.of({**BASE, "model": model, "data": {"paths": [PYTHON]}}))

    model, source, _ = made(2500)
    assert (model.config.vocab, source.vocab) == (2500, 2500)
    with pytest.raises(ConfigError, match=r"model\.config has '300' for vocab, expected a whole number"):
        made("300")
    with pytest.raises(ConfigError, match=r"model\.config vocab is 1000000000, expected 0 to 4000000"):
        made(10**9)


def test_rows_longer_than_a_table_of_positions_are_refused() -> None:
    corpus = Corpus.of(TEXT, vocab=300)
    model = load_family("gpt2")(dim=8, heads=1, layers=1, max_positions=8, vocab=300)
    check_fit(model, corpus, 8)
    with pytest.raises(ConfigError, match="length is 9, but the model has 8 positions"):
        train(model, corpus, steps=1, length=9, progress=False)
    student = load_family("gpt2")(dim=8, heads=1, layers=1, max_positions=16, vocab=300)
    with pytest.raises(ConfigError, match="length is 9, but the model has 8 positions"):
        distill(student, model, corpus, steps=1, length=9, progress=False)
    check_fit(load_family("llama")(dim=8, heads=1, kv_heads=1, ffn=8, layers=1, max_positions=8, vocab=300), corpus, 9)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    with pytest.raises(ConfigError, match=r"r\.toml: there is no such file"):
        Recipe.read(path)
    path.write_text("[model\n")
    with pytest.raises(ConfigError, match=r"r\.toml: is not TOML: .*line 1"):
        Recipe.read(path)
    path.write_bytes(b'[model]\nfamily = "\xff"\n')
    with pytest.raises(ConfigError, match=r"r\.toml: is not TOML: .*0xff"):
        Recipe.read(path)
    path.write_text("train = 3\n")
    with pytest.raises(ConfigError, match=rf"^{path}: train is 3, expected a table"):
        Recipe.read(path, {"train": {"steps": 5}})


def test_what_tuning_takes_where_nothing_is_given() -> None:
    """Settings of training from nothing, of a LoRA and of preferences are not the same."""
    plain, tuned = Recipe.of(BASE).train, Recipe.of({**BASE, "lora": {}}).train
    assert plain == Settings.of({"steps": 4})
    assert (tuned.learning_rate, tuned.batch, tuned.length, tuned.final, tuned.weight_decay) == (2e-4, 8, 512, 0.0, 0.0)
    assert Recipe.of(FULL).train.learning_rate == 2e-5
    full = Recipe.of({**BASE, "data": {"kind": "instructions", "paths": ["a"]}}).train
    assert full.learning_rate == 2e-5 and full.betas == (0.9, 0.999)
    given = Recipe.of({**FULL, "train": {"steps": 4, "learning_rate": 1.0, "batch": 2}}).train
    assert (given.learning_rate, given.batch) == (1.0, 2)


@pytest.mark.parametrize("values", [BASE, FULL, {**BASE, "model": {"family": "gpt2", "config": {"dim": 8}}}])
def test_a_resolved_recipe_is_read_back_the_same(values: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe.of(values, folder=tmp_path)
    recipe.save(tmp_path / "run")
    again = Recipe.read(tmp_path / "run" / "recipe.toml")
    assert again == recipe and again.to_dict() == recipe.to_dict()
    saved = read_toml(tmp_path / "run" / "recipe.toml")
    assert set(saved) == {"model", "data", "tokenizer", "train", "metrics"} | (set(values) - {"model", "data", "train"})
    for f in dataclasses.fields(Settings):
        assert f.name in saved["train"] or getattr(recipe.train, f.name) is None, "every default is told"
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["recipe.toml"]


def test_paths_are_taken_from_the_folder_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "r.toml"
    values = {
        "model": {"path": "models/base"},
        "data": {"paths": ["a.txt", "sub/../b.txt", "/abs/c.txt", "~/d.txt", PYTHON]},
        "tokenizer": {"path": "not/there"},
        "distill": {"teacher": "some/hub-id"},
        "train": {"steps": 1},
    }
    path.write_text(tomli_w.dumps(values))
    monkeypatch.chdir("/")
    recipe = Recipe.read(path)
    assert recipe.model.path == str(tmp_path / "models/base")
    here = str(tmp_path)
    assert recipe.data.paths == (f"{here}/a.txt", f"{here}/sub/../b.txt", "/abs/c.txt", "/home/me/d.txt", PYTHON)
    assert recipe.tokenizer.path == "not/there" and recipe.distill and recipe.distill.teacher == "some/hub-id"


# -- changes on the command line -------------------------------------------------------------------------------


def test_changes_are_toml_or_text() -> None:
    texts = [
        "train.steps=100", "train.ema = 0.999", "train.betas=[0.8, 0.9]", "train.schedule=linear", "lora.rank=2",
        'data.paths=["x", "y"]', "model.config.dim=8", "model.config.tied=true", "tokenizer.path=a=b",
    ]  # fmt: skip
    assert changes_of(texts) == {
        "train": {"steps": 100, "ema": 0.999, "betas": [0.8, 0.9], "schedule": "linear"},
        "lora": {"rank": 2},
        "data": {"paths": ["x", "y"]},
        "model": {"config": {"dim": 8, "tied": True}},
        "tokenizer": {"path": "a=b"},
    }
    for wrong in ("steps=3", "train.steps", ".steps=3", "train.=3", "train..x=3", ""):
        with pytest.raises(ConfigError, match=f"^{re.escape(repr(wrong))} is not a change"):
            changes_of([wrong])


def test_changes_go_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(tomli_w.dumps({**BASE, "model": {"family": "gpt2", "config": {"dim": 8, "layers": 1}}}))
    recipe = Recipe.read(path, changes_of(["train.steps=9", "model.config.dim=16", "lora.rank=3"]))
    assert recipe.train.steps == 9 and recipe.model.config == {"dim": 16, "layers": 1}
    assert recipe.lora and recipe.lora.rank == 3
    with pytest.raises(ConfigError, match=rf"^{path}: \[train\] has no field 'step', did you mean 'steps'"):
        Recipe.read(path, changes_of(["train.step=9"]))


# -- the command -----------------------------------------------------------------------------------------------

TOML = """
[model]
family = "llama"
config = { dim = 16, ffn = 32, layers = 1, heads = 2, kv_heads = 1, tied = true }

[data]
paths = ["text.txt"]
held_out = 0.1

[tokenizer]
vocab = 280

[train]
steps = 6
batch = 4
length = 16
learning_rate = 0.005
ema = 0.9
evaluate_every = 2
device = "cpu"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "r.toml").write_text(TOML)
    return tmp_path


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def test_command_from_a_recipe_to_a_model(place: Path) -> None:
    out = place / "run"
    done = call(place / "r.toml", out)
    assert done.exit_code == 0, done.output
    assert re.search(r"step 6/6  loss \d.* held-out \d.* perplexity \d", done.stdout)
    assert "% of peak" in done.stderr and "data: " in done.stdout and f"wrote {out}" in done.stdout
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in out.iterdir()} == names | {"checkpoints", "log.jsonl", "loss.png", "recipe.toml"}
    kept = Recipe.read(out / "recipe.toml")
    assert kept == Recipe.read(place / "r.toml") and kept.train.weight_decay == 0.1
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 280

    again = call(out / "recipe.toml", place / "again", "--json")
    assert again.exit_code == 0, again.output
    told = json.loads(again.stdout)
    assert [x["step"] for x in told["measured"]] == [2, 4, 6] and told["folder"] == str(place / "again")
    assert told["train_tokens"] > told["held_out_tokens"] > 0
    assert_same_weights(out, place / "again")

    refused = call(place / "r.toml", out)
    assert refused.exit_code == 1 and "which a new one would replace" in refused.stderr


def test_command_goes_on_and_refuses_another_run(place: Path) -> None:
    out = place / "run"
    short = call(place / "r.toml", out, "--set", "train.steps=6", "--set", "train.checkpoint_every=4", "--json")
    assert short.exit_code == 0, short.output
    for name in ("step-00000006",):
        (out / "checkpoints" / name / "model.safetensors").write_bytes(b"damaged")
    weights = (out / "model.safetensors").read_bytes()
    resumed = call(place / "r.toml", out, "--resume", "--json")
    assert resumed.exit_code == 0, resumed.output
    assert [x["step"] for x in json.loads(resumed.stdout)["measured"]] == [6]
    assert (out / "model.safetensors").read_bytes() == weights
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for change, message in (
        ("data.held_out=0.2", r"\[data\] is .*0.2.*, but the run was begun with .*0.1"),
        ("tokenizer.vocab=290", r"\[tokenizer\] is .*290.*, but the run was begun with"),
        ("model.config.dim=32", r"\[model\] is .*32.*, but the run was begun with"),
        ("lora.rank=2", r"\[lora\] is .*, but the run was begun with None"),
        ("train.seed=1", "seed is 1, but the run was begun with 0"),
    ):
        refused = call(place / "r.toml", out, "--resume", "--set", change, "--json")
        assert refused.exit_code == 1
        error = json.loads(refused.stdout)
        assert error["kind"] == "ConfigError" and re.search(message, error["error"]), error
    (place / "text.txt").write_text(TEXT.replace("mat", "rug"))
    refused = call(place / "r.toml", out, "--resume")
    assert refused.exit_code == 1 and "the first batch of the data is not the one" in refused.stderr
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before, "nothing was touched"


def test_command_options_go_over_the_recipe(place: Path) -> None:
    options = ["--steps", "2", "--batch", "2", "--length", "8", "--seed", "5", "--set", "train.ema=0", "--tensorboard"]
    done = call(place / "r.toml", place / "run", *options, "--set", "train.steps=3")
    assert done.exit_code == 0, done.output
    kept = Recipe.read(place / "run" / "recipe.toml").train
    assert (kept.steps, kept.batch, kept.length, kept.seed, kept.ema) == (3, 2, 8, 5, 0.0)
    assert list((place / "run" / "tensorboard").glob("events.*"))


def test_command_on_a_model_keeps_a_recipe_that_can_be_read_anywhere(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    config = {"model_type": "llama", "vocab_size": 280, "hidden_size": 16, "intermediate_size": 32}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    (place / "config.json").write_text(json.dumps(config))
    done = call(
        "config.json", "run", "--text", "text.txt", "--steps", 2, "--batch", 2, "--length", 8, "--device", "cpu"
    )
    assert done.exit_code == 0, done.output
    monkeypatch.chdir("/")
    kept = Recipe.read(place / "run" / "recipe.toml")
    assert kept.model.path == str(place / "config.json") and kept.data.paths == (str(place / "text.txt"),)
    again = call(place / "run" / "recipe.toml", place / "again", "--json")
    assert again.exit_code == 0, again.output
    assert_same_weights(place / "run", place / "again")


def test_command_refusals(place: Path) -> None:
    for arguments, message in (
        (["r.toml", "--text", "text.txt"], "--text goes with a model; a recipe names its data"),
        (["r.toml", "--set", "train.lenght=3"], r"r.toml: [train] has no field 'lenght', did you mean 'length'?"),
        (["r.toml", "--set", "steps"], "'steps' is not a change"),
        (["r.toml", "--device", "gpu"], "no device is called 'gpu'"),
        (["none.toml"], "none.toml: there is no such file"),
        (["r.toml", "--set", 'data.paths=["no.txt"]'], "no.txt: there is no such file"),
        (["r.toml", "--set", "model.config.dims=3"], "unknown key 'dims' = 3"),
    ):
        first, *rest = arguments
        done = call(place / first, place / "run", *rest)
        assert done.exit_code == 1 and message in done.stderr, done.output
        assert not (place / "run").exists()


def test_the_page_tells_every_field_with_its_default() -> None:
    page = (Path(__file__).parent.parent / "docs" / "training.md").read_text()
    plain, *others = (tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL))
    tuning = {table: fields for block in others for table, fields in block.items() if table not in plain}
    told = Recipe.of({**plain, "model": BASE["model"]})
    assert told == Recipe.of({**BASE, "data": {"paths": ["book.txt"]}, "train": {"steps": 1000, "device": "cpu"}})
    for table, field, _ in kinds():
        assert field in (plain | tuning)[table] or f"\n# {field} = " in page, f"{table}.{field}"
    for table, fields in tuning.items():
        default = dataclasses.asdict(TYPES[table]())
        assert fields == json.loads(json.dumps(default | ({"teacher": "a checkpoint"} if table == "distill" else {})))
