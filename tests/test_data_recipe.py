"""Recipes: every field checked, with the name that was meant."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from monograph.data.recipe import Recipe
from monograph.ir.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "input.paths is empty"),
        ({"inputs": {}}, r"no table is called \[inputs\], did you mean 'input'\?"),
        ({"input": 3}, "input is 3, expected a table"),
        ({"input": {"path": ["a"]}}, r"\[input\] has no field 'path', did you mean 'paths'\?"),
        ({"input": {"paths": "a"}}, "input.paths is 'a', expected a list"),
        ({"input": {"format": "jsnl"}}, "input.format is 'jsnl', expected one of .* did you mean 'jsonl'"),
        ({"input": {"documents": "lines"}}, "did you mean 'line'"),
        ({"input": {"max_document_bytes": 0}}, "input.max_document_bytes is 0, expected 1 to"),
        ({"input": {"damaged": "skip"}}, "expected one of count, refuse"),
        ({"clean": {"unicode": "nfc"}}, "clean.unicode is 'nfc', expected one of NFC"),
        ({"clean": {"filters": ["goffer"]}}, "no filter is called 'goffer', did you mean 'gopher'"),
        ({"clean": {"limits": {"few_word": 3}}}, "no filter is called 'few_word', did you mean 'few_words'"),
        ({"clean": {"limits": {"few_words": "3"}}}, "clean.limits.few_words is '3', expected a number"),
        ({"clean": {"limits": {"lorem_ipsum": 3}}}, "the filter 'lorem_ipsum' has no limit"),
        ({"clean": {"limits": {"few_sentences": 3}}}, "'few_sentences' is not among clean.filters"),
        ({"duplicates": {"exact": 1}}, "duplicates.exact is 1, expected true or false"),
        ({"duplicates": {"near": "yes"}}, "expected one of remove, keep, off"),
        ({"duplicates": {"threshold": 1.5}}, "duplicates.threshold is 1.5, expected 0.3 to 1.0"),
        ({"duplicates": {"exact": False}}, 'duplicates.exact is false but near is "remove"'),
        ({"split": {"held_out": True}}, "split.held_out is True, expected a number"),
        ({"split": {"held_out": 0.95}}, "expected 0.0 to 0.9"),
        ({"split": {"seed": -1}}, "split.seed is -1"),
        ({"tokenizer": {"kind": "byte_bpe"}}, "expected one of byte-bpe, .* did you mean 'byte-bpe'"),
        ({"tokenizer": {"task": "causal"}}, "did you mean 'causal-lm'"),
        ({"tokenizer": {"vocab": 3.5}}, "tokenizer.vocab is 3.5, expected a whole number"),
        ({"shards": {"tokens": 0}}, "shards.tokens is 0"),
        ({"work": {"memory_bytes": 3}}, "work.memory_bytes is 3"),
    ],
)
def test_errors_name_the_field(values: dict[str, Any], message: str) -> None:
    if values:
        values = {"input": {"paths": ["a"]}, **values}
        if isinstance(values["input"], dict):
            values["input"] = {"paths": ["a"], **values["input"]}
    with pytest.raises(ConfigError, match=rf"^r\.toml: .*{message}"):
        Recipe.of(values, "r.toml")


def test_a_recipe_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(
        '[input]\npaths = ["in/*.txt", "/abs.jsonl"]\n[tokenizer]\npath = "tok"\n[clean.limits]\nfew_words = 9'
    )
    recipe = Recipe.read(path)
    assert recipe.input.paths == (str(tmp_path / "in/*.txt"), "/abs.jsonl")
    assert recipe.tokenizer.path == str(tmp_path / "tok") and recipe.clean.limits == {"few_words": 9}
    assert Recipe.of(recipe.to_dict()) == recipe
    path.write_text("[input\n")
    with pytest.raises(ConfigError, match=r"r\.toml: is not TOML: .*line 1"):
        Recipe.read(path)
    with pytest.raises(ConfigError, match=r"none\.toml: there is no such file"):
        Recipe.read(tmp_path / "none.toml")


def test_every_field_is_documented() -> None:
    """docs/data.md names every field of every table with its default."""
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text()
    recipe = Recipe.of({"input": {"paths": ["a"]}})
    for table in dataclasses.fields(recipe):
        assert f"[{table.name}]" in page
        for f in dataclasses.fields(getattr(recipe, table.name)):
            assert f"`{f.name}`" in page, f"{table.name}.{f.name}"
