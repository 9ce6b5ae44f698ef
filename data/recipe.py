"""The recipe of a data run: every setting with its default, read from TOML, every field checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..ir.errors import ConfigError, did_you_mean
from .filters import DEFAULT, FILTERS, expand
from .tables import between, one_of, read_toml, some, tables
from .tokenizers import KINDS, TASKS

FORMATS = ("auto", "text", "jsonl", "parquet")
DOCUMENTS = ("file", "line", "separator")
UNICODE = ("NFC", "NFKC", "none")
NEAR = ("remove", "keep", "off")
DAMAGED = ("count", "refuse")


@dataclass(frozen=True)
class Input:
    """Where documents come from.

    paths: files, folders or globs, relative to the recipe. format: auto goes by the name of the file. field: the key
    or column that holds the text. documents: what a document is in a text file: the file, a line, or what stands
    between lines that equal `separator`. max_document_bytes: longer ones are counted and left out. damaged: what to do
    with a document that is not UTF-8 or not JSON: count it and go on, or refuse the file.
    """

    paths: tuple[str, ...] = ()
    format: str = "auto"
    field: str = "text"
    documents: str = "file"
    separator: str = ""
    max_document_bytes: int = 16_000_000
    damaged: str = "count"

    def check(self) -> None:
        some(self.paths, "input.paths", "at least one file, folder or glob")
        one_of(self.format, FORMATS, "input.format")
        one_of(self.documents, DOCUMENTS, "input.documents")
        one_of(self.damaged, DAMAGED, "input.damaged")
        between(self.max_document_bytes, 1, 1 << 30, "input.max_document_bytes")


@dataclass(frozen=True)
class Clean:
    """unicode: the normal form. filters: names of filters or sets. limits: numbers in place of the papers'."""

    unicode: str = "NFC"
    filters: tuple[str, ...] = DEFAULT
    limits: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        one_of(self.unicode, UNICODE, "clean.unicode")
        names = expand(self.filters)
        for name, limit in self.limits.items():
            if name not in FILTERS:
                raise ConfigError(f"clean.limits: no filter is called {name!r}{did_you_mean(name, FILTERS)}")
            if isinstance(limit, bool) or not isinstance(limit, (int, float)):
                raise ConfigError(f"clean.limits.{name} is {limit!r}, expected a number")
            if FILTERS[name].limit is None:
                raise ConfigError(f"clean.limits: the filter {name!r} has no limit")
            if name not in names:
                raise ConfigError(f"clean.limits: the filter {name!r} is not among clean.filters")


@dataclass(frozen=True)
class Duplicates:
    """exact: remove documents with the same words in the same order. near: remove those whose estimated Jaccard
    similarity of word `shingle`-grams is at least `threshold`, keep them on one side of the split, or do not look.
    """

    exact: bool = True
    near: str = "remove"
    threshold: float = 0.8
    permutations: int = 128
    shingle: int = 5
    seed: int = 1

    def check(self) -> None:
        one_of(self.near, NEAR, "duplicates.near")
        between(self.threshold, 0.3, 1.0, "duplicates.threshold")
        between(self.permutations, 16, 1024, "duplicates.permutations")
        between(self.shingle, 1, 50, "duplicates.shingle")
        between(self.seed, 0, (1 << 32) - 1, "duplicates.seed")
        if not self.exact and self.near == "remove":
            raise ConfigError('duplicates.exact is false but near is "remove": an exact duplicate is a near one too')


@dataclass(frozen=True)
class Split:
    """held_out: share of the documents that training never sees; which ones depends on seed and content only."""

    held_out: float = 0.01
    seed: int = 0

    def check(self) -> None:
        between(self.held_out, 0.0, 0.9, "split.held_out")
        between(self.seed, 0, (1 << 63) - 1, "split.seed")


@dataclass(frozen=True)
class TokenizerRecipe:
    """path: a folder with tokenizer.json; empty: train one of `kind` with `vocab` entries for `task` on at most
    `sample_bytes` of the training documents.
    """

    path: str = ""
    kind: str = "byte-bpe"
    vocab: int = 32_000
    task: str = "causal-lm"
    sample_bytes: int = 50_000_000

    def check(self) -> None:
        one_of(self.kind, KINDS, "tokenizer.kind")
        one_of(self.task, TASKS, "tokenizer.task")
        between(self.vocab, 16, 4_000_000, "tokenizer.vocab")
        between(self.sample_bytes, 1000, 1 << 40, "tokenizer.sample_bytes")


@dataclass(frozen=True)
class ShardRecipe:
    """tokens: a shard is closed once it has this many."""

    tokens: int = 1 << 26

    def check(self) -> None:
        between(self.tokens, 1, 1 << 40, "shards.tokens")


@dataclass(frozen=True)
class Work:
    """piece_bytes: input of one task. memory_bytes: what the search for duplicates may hold at a time."""

    piece_bytes: int = 1 << 25
    memory_bytes: int = 1 << 28

    def check(self) -> None:
        between(self.piece_bytes, 1, 1 << 34, "work.piece_bytes")
        between(self.memory_bytes, 1 << 10, 1 << 40, "work.memory_bytes")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the shards hold. Raises ConfigError for a value that is out of its range."""

    input: Input
    clean: Clean = Clean()
    duplicates: Duplicates = Duplicates()
    split: Split = Split()
    tokenizer: TokenizerRecipe = TokenizerRecipe()
    shards: ShardRecipe = ShardRecipe()
    work: Work = Work()

    def __post_init__(self) -> None:
        for f in fields(self):
            getattr(self, f.name).check()

    @staticmethod
    def of(values: Mapping[str, Any], place: str = "", folder: Path | None = None) -> Recipe:
        """A recipe from nested tables; paths in it are taken from `folder`. Raises ConfigError naming the field."""
        try:
            recipe = Recipe(**{k: _TABLES[k](**v) for k, v in tables(values, _TABLES).items()})
        except ConfigError as e:
            raise ConfigError(e.what, place=place, hint=e.hint) from None
        return recipe if folder is None else recipe.from_folder(folder)

    @staticmethod
    def read(path: str | Path) -> Recipe:
        """A recipe from a TOML file. Raises ConfigError naming file and field, or file, line and column."""
        values = read_toml(path)
        return Recipe.of(values, str(path), Path(path).parent.resolve())

    def from_folder(self, folder: Path) -> Recipe:
        paths = tuple(str(folder / p) for p in self.input.paths)
        tokenizer = str(folder / self.tokenizer.path) if self.tokenizer.path else ""
        return dataclasses.replace(
            self,
            input=dataclasses.replace(self.input, paths=paths),
            tokenizer=dataclasses.replace(self.tokenizer, path=tokenizer),
        )

    def to_dict(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))


def digest(value: Any) -> str:
    """A short name for a JSON value: equal values, equal names."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


_TABLES: dict[str, type] = {
    "input": Input,
    "clean": Clean,
    "duplicates": Duplicates,
    "split": Split,
    "tokenizer": TokenizerRecipe,
    "shards": ShardRecipe,
    "work": Work,
}
