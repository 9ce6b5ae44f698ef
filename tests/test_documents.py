"""What is read from files of others: regular files only, JSON that Python can hold, one typed error for the rest."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from monograph.data.tables import changes_of, read_toml
from monograph.frontends.tokenizer import read_json
from monograph.ir import MonographError
from monograph.ir.documents import parse_json
from monograph.ir.errors import ConfigError, WeightsError
from monograph.ir.safetensors import read_file
from monograph.ir.weights import Weights
from monograph.training.recipe import Recipe

TEXTS = {
    "an int of 400 digits": '{"a": 1' + "0" * 400 + "}",
    "an int of 5000 digits": '{"a": 1' + "0" * 5000 + "}",
    "nested": "[" * 100_000,
    "nested objects": '{"a":' * 100_000,
    "nothing": "",
    "a zero": "\0",
    "a comma": '{"a": 1,}',
    "two": "{} {}",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_json_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError):
        parse_json(text)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json: is not JSON that can be read"):
        read_json(tmp_path / "config.json")
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError, match=r"index\.json: is not an index"):
        Weights.open(tmp_path)
    header = text.encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(WeightsError, match=r"x\.safetensors: has a header that is not JSON"):
        read_file(tmp_path / "x.safetensors")


def test_json_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes('{"a": "é"}'.encode("utf-16"))
    with pytest.raises(ConfigError, match="is not JSON that can be read"):
        read_json(tmp_path / "config.json")


def test_large_numbers_that_are_used() -> None:
    assert parse_json('{"model_max_length": 1000000000000000019884624838656}')["model_max_length"] > 10**30


@pytest.mark.parametrize("name", ["a\0b", "../a", "a/b", "", ".", "..", "/a"])
def test_an_index_names_files_beside_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(WeightsError, match="which is not the name of a file in the same folder"):
        Weights.open(tmp_path)


def test_names_that_no_file_has(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "a" * 300}}))
    with pytest.raises(WeightsError, match="cannot be read: File name too long"):
        Weights.open(tmp_path)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_file(tmp_path / "a\0b")


@pytest.mark.skipif(os.name != "posix", reason="other systems have none of these")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device", "a folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    with socket.socket(socket.AF_UNIX) as s:
        if kind == "a pipe":
            os.mkfifo(path)
        elif kind == "a socket":
            s.bind(str(path))
        elif kind == "a device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()
        readers = {"model.safetensors": read_file, "config.json": read_json, "tokenizer.json": read_json}
        reader = readers.get(name, lambda path: Weights.open(path.parent))
        with pytest.raises(MonographError, match=rf"{name}: cannot be read: (is {kind}, not a file|No such device)"):
            reader(path)


@pytest.mark.parametrize("text", [
    "a=" + "[" * 50_000 + "]" * 50_000, "[train]\nsteps=" + "9" * 5000, "a = 1\na = 2", "a = ", "\0", "[a", "a.b.c",
])  # fmt: skip
def test_toml_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"r\.toml: is not TOML"):
        read_toml(tmp_path / "r.toml")


@pytest.mark.parametrize(
    "value", ["9" * 400, "nan", "inf", "-inf", "1e999", "[1]", "true", '"a"', "{a = 1}", "1979-05-27"]
)
@pytest.mark.parametrize("field", ["train.steps", "train.batch", "train.learning_rate", "train.seed", "data.held_out"])
def test_numbers_of_a_recipe(field: str, value: str) -> None:
    values = {"model": {"path": "x"}, "data": {"paths": ["y"]}, "train": {"steps": 1}}
    for table, fields in changes_of([f"{field}={value}"]).items():
        values.setdefault(table, {}).update(fields)
    with pytest.raises(ConfigError, match=field.partition(".")[2]):
        Recipe.of(values, folder=Path())
