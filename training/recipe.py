"""The recipe of a training run: model, data and settings in one TOML file, every field checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from ..data.tables import between, is_list, is_table, merged, one_of, read_toml, some, tables
from ..data.tokenizers import KINDS as TOKENIZERS
from ..ir.errors import ConfigError
from ..ir.files import staged
from .adapters import ALL
from .finetune import tuning_settings
from .settings import Settings

KINDS = ("text", "shards", "pairs", "labelled", "instructions", "preferences", "arrays")
METHODS = ("train", "lora", "dpo", "distill")
RECIPE = "recipe.toml"
MOST_ENTRIES = 4_000_000
"""Of a new tokenizer: its trainer ends the process when memory is not enough for them."""
PYTHON = "python:help"
"""In place of a text file: the help pages that every Python carries."""


@dataclass(frozen=True)
class ModelRecipe:
    """Either path: a checkpoint or another model that `monograph show` takes; or family: a model_type, or
    FILE.py[:NAME] with an @model, with `config`.

    task: which head, where a family has several (empty: what the data is for, else that of the checkpoint); a head that
    the checkpoint does not have is drawn anew. config: fields of the family's Config; without `vocab`, that of the
    tokenizer is taken. dtype of training weights is f32.
    """

    path: str = ""
    family: str = ""
    task: str = ""
    config: dict[str, Any] = field(default_factory=dict[str, Any])

    def check(self) -> None:
        if bool(self.path) == bool(self.family):
            raise ConfigError("[model] needs either path or family")
        if self.path and self.config:
            raise ConfigError("model.config goes with model.family: a model at a path has its own")


@dataclass(frozen=True)
class DataRecipe:
    """kind: what `paths` are: text files, a run of `monograph data`, pairs, labelled rows, instructions,
    preferences, arrays by the names of inputs (.npz, .jsonl).

    held_out: share that training never sees. documents: of shards, a token sees its own document only. mask: share of
    tokens a masked-lm model must guess; whole_word: words are masked as a whole.
    """

    kind: str = "text"
    paths: tuple[str, ...] = ()
    held_out: float = 0.05
    documents: bool = True
    mask: float = 0.15
    whole_word: bool = False

    def check(self) -> None:
        one_of(self.kind, KINDS, "data.kind")
        some(self.paths, "data.paths", "at least one file or folder")
        between(self.held_out, 0.0, 0.9, "data.held_out")
        between(self.mask, 0.01, 0.9, "data.mask")


@dataclass(frozen=True)
class TokenizerRecipe:
    """path: a folder with tokenizer.json; empty: that of the model, or one is trained, of `kind` and with `vocab`
    entries (0: as many as the model has, or 2048 for a new model).
    """

    path: str = ""
    kind: str = "byte-bpe"
    vocab: int = 0

    def check(self) -> None:
        one_of(self.kind, TOKENIZERS, "tokenizer.kind")
        between(self.vocab, 0, MOST_ENTRIES, "tokenizer.vocab")


@dataclass(frozen=True)
class LoraRecipe:
    """See `Lora`; quantized: the frozen weights are held in 8 bits. targets: empty for every linear layer."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    quantized: bool = False

    def check(self) -> None:
        between(self.rank, 1, 65_536, "lora.rank")
        between(self.dropout, 0.0, 0.99, "lora.dropout")


@dataclass(frozen=True)
class DpoRecipe:
    """beta: how strongly the model is held to the reference."""

    beta: float = 0.1

    def check(self) -> None:
        between(self.beta, 1e-6, 1e6, "dpo.beta")


@dataclass(frozen=True)
class DistillRecipe:
    """teacher: a model like model.path. temperature, hard: see `distillation_loss`."""

    teacher: str = ""
    temperature: float = 2.0
    hard: float = 0.5

    def check(self) -> None:
        if not self.teacher:
            raise ConfigError("distill.teacher is missing: the model to learn from")


@dataclass(frozen=True)
class MetricsRecipe:
    """translate: held-out pairs that are translated greedily at the end, for BLEU and chrF (0: none)."""

    translate: int = 0

    def check(self) -> None:
        between(self.translate, 0, 1 << 31, "metrics.translate")


@dataclass(frozen=True)
class Recipe:
    """All that decides a run. Tables [lora], [dpo] and [distill] say how a model with weights is tuned, if given."""

    model: ModelRecipe
    data: DataRecipe
    tokenizer: TokenizerRecipe
    train: Settings
    metrics: MetricsRecipe = MetricsRecipe()
    lora: LoraRecipe | None = None
    dpo: DpoRecipe | None = None
    distill: DistillRecipe | None = None

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            table = getattr(self, f.name)
            if table is not None and not isinstance(table, Settings):
                table.check()
        if self.dpo and self.distill:
            raise ConfigError("[dpo] and [distill] are two kinds of training: give one")
        if self.dpo and self.data.kind != "preferences":
            raise ConfigError(f"[dpo] needs data.kind preferences, not {self.data.kind}")
        if self.metrics.translate and (self.data.kind != "pairs" or not self.data.held_out):
            raise ConfigError("metrics.translate needs data.kind pairs, and data.held_out above 0")
        if self.lora and self.lora.quantized and (self.dpo or self.distill):
            raise ConfigError("lora.quantized goes with neither [dpo] nor [distill]")

    @staticmethod
    def of(values: Mapping[str, Any], place: str = "", folder: Path | None = None) -> Recipe:
        """A recipe from nested tables; paths in it are taken from `folder`. Raises ConfigError naming the field."""
        try:
            found = tables(values, _TABLES)
            parts: dict[str, Any] = {k: _TABLES[k](**found[k]) for k in ("model", "data", "tokenizer", "metrics")}
            parts |= {k: _TABLES[k](**found[k]) for k in METHODS[1:] if k in values}
            recipe = Recipe(train=_settings(found["train"], parts), **parts)
        except ConfigError as e:
            raise ConfigError(e.what, place=place, details=e.details, hint=e.hint) from None
        return recipe if folder is None else recipe.from_folder(folder)

    @staticmethod
    def read(path: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
        """A recipe from a TOML file, with `changes` over its tables. Raises ConfigError naming file and field."""
        return Recipe.of(merged(read_toml(path), changes or {}), str(path), Path(path).parent.resolve())

    def from_folder(self, folder: Path) -> Recipe:
        """Data is looked for beside the recipe, and so are models and tokenizers that lie there."""
        paths = tuple(p if p == PYTHON else str(folder / Path(p).expanduser()) for p in self.data.paths)
        recipe = dataclasses.replace(self, data=dataclasses.replace(self.data, paths=paths))
        places = (("model", "path"), ("model", "family"), ("tokenizer", "path"), ("distill", "teacher"))
        for table, name in places:
            part = getattr(recipe, table)
            given = getattr(part, name, "")
            if given and (folder / _file_of(given)).exists():
                recipe = dataclasses.replace(
                    recipe, **{table: dataclasses.replace(part, **{name: str(folder / given)})}
                )
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Tables with every default filled in, as TOML can hold them."""
        return {k: _plain(v) for k, v in dataclasses.asdict(self).items() if v is not None}

    def save(self, folder: Path) -> None:
        """Write recipe.toml: what the run was, with every default it took."""
        with staged(folder) as stage, stage.open(RECIPE) as f:
            f.write(tomli_w.dumps(self.to_dict()).encode())

    def check_same(self, folder: Path) -> None:
        """Raises ConfigError naming the first table in which the run in `folder` was another one."""
        path = folder / RECIPE
        if not path.exists():
            return
        before, now = read_toml(path), self.to_dict()
        for table in _TABLES:
            if table != "train" and before.get(table) != now.get(table):
                what = f"[{table}] is {now.get(table)}, but the run was begun with {before.get(table)}"
                raise ConfigError(what, place=str(path))


_TABLES: dict[str, type] = {
    "model": ModelRecipe,
    "data": DataRecipe,
    "tokenizer": TokenizerRecipe,
    "train": Settings,
    "lora": LoraRecipe,
    "dpo": DpoRecipe,
    "distill": DistillRecipe,
    "metrics": MetricsRecipe,
}


def _settings(given: dict[str, Any], parts: Mapping[str, Any]) -> Settings:
    """Training from nothing has other defaults than tuning a model with weights."""
    kind = parts["data"].kind
    tuned = kind in ("instructions", "preferences") or "lora" in parts or (kind == "labelled" and parts["model"].path)
    if not tuned and "distill" not in parts:
        return Settings.of(given)
    kind = "dpo" if "dpo" in parts else "lora" if "lora" in parts else "full"
    return tuning_settings("dpo lora" if kind == "dpo" and "lora" in parts else kind, **given)


def targets_of(recipe: LoraRecipe) -> str | tuple[str, ...]:
    return recipe.targets or ALL


def _file_of(name: str) -> str:
    """FILE.py of FILE.py:NAME; any other name as it is."""
    file, colon, _ = name.rpartition(":")
    return file if colon and file.endswith(".py") else name


def _plain(value: Any) -> Any:
    if is_table(value):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return [_plain(v) for v in value] if is_list(value) else value
