"""Folders carry sizes and digests: what is damaged is refused, what was found whole is not read again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import monograph as mg
import pytest
from command_line import call
from monograph.backends.onnxruntime import open as open_session
from monograph.ir import MonographError, manifest
from monograph.ir.errors import WeightsError
from monograph.ir.manifest import MANIFEST, VERIFIED, check, seal
from monograph.ir.weights import Weights
from small_models import small


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flipped(path: Path) -> None:
    """One bit in the middle, with the time of the file put back."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def swapped(path: Path) -> None:
    """Halves of the file in the other order."""
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 2 :] + data[: len(data) // 2])


def gone(path: Path) -> None:
    path.unlink()


def decoder(seed: int = 0) -> mg.Model:
    model = small("llama")
    model.weights = Weights.initialize(model.graph(), seed)
    return model


DAMAGES = (zeroed, flipped, cut, longer, swapped, gone)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("manifest") / "built"
    mg.build(decoder(), folder, threads=1).close()
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mg.export(decoder(), tmp_path_factory.mktemp("manifest") / "onnx")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "monograph.json", "config.json", MANIFEST])
def test_a_damaged_build_is_not_opened(built: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(built, folder)
    open_session(folder, threads=1)
    assert (folder / VERIFIED).exists()
    damage(folder / name)
    with pytest.raises(MonographError, match=name.replace(".", r"\.")):
        open_session(folder, threads=1)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "config.json"])
def test_a_damaged_export(exported: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported, folder)
    check(folder)
    damage(folder / name)
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        mg.verify(decoder(), folder)


def test_files_of_another_build(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(built, folder)
    mg.build(decoder(1), tmp_path / "other", threads=1).close()
    shutil.copy(tmp_path / "other" / "model.onnx.data", folder)
    with pytest.raises(WeightsError, match=r"model\.onnx\.data"):
        open_session(folder, threads=1)


def test_what_was_found_whole_is_not_read_again(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    digest = manifest.sha256_of

    def noted(path: Path) -> str:
        read.append(path.name)
        return digest(path)

    monkeypatch.setattr(manifest, "sha256_of", noted)
    folder, files = tmp_path / "copy", {*json.loads((built / MANIFEST).read_text())["files"]}
    shutil.copytree(built, folder)
    check(folder)
    assert {*read} == files
    read.clear()
    check(folder)
    assert read == [], "the second time, nothing has changed"
    (folder / "config.json").touch()
    check(folder)
    assert read == ["config.json"], "only what may have changed"
    read.clear()
    check(folder, every_byte=True)
    assert {*read} == files
    read.clear()
    shutil.copytree(folder, tmp_path / "another")
    check(tmp_path / "another")
    assert {*read} == files, "a copy keeps times, and is read all the same"


def test_a_folder_that_cannot_be_written(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(built, folder)
    (folder / VERIFIED).unlink(missing_ok=True)
    (folder / VERIFIED).mkdir()  # Also root cannot write a file of this name.
    check(folder)
    check(folder)


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", '{"files": {}}', '{"format": "x", "files": [], "sha256": ""}', "[" * 100_000, "\0",
    "9" * 5000,
])  # fmt: skip
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(WeightsError, match="is damaged: build the model again"):
        check(tmp_path)


def test_a_manifest_names_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").write_text("x")
    said = {"format": manifest.FORMAT, "files": {"../out": {"bytes": 1, "sha256": "x"}}}
    (tmp_path / "in" / MANIFEST).write_text(json.dumps({**said, "sha256": manifest.sha256_of_json(said)}))
    with pytest.raises(WeightsError, match=r"names '\.\./out'"):
        check(tmp_path / "in")


def test_other_files_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a").write_text("a")
    seal(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    check(tmp_path)
    (tmp_path / "below" / "a").write_text("b")
    with pytest.raises(WeightsError, match="below/a: is not the file that was written"):
        check(tmp_path)


def test_check_from_the_command_line(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(built, folder)
    longer(folder / "config.json")
    for command in (["run", folder, "hi", "--check"], ["run", folder, "hi"]):
        assert "config.json: is " in call(*command, code=1).output
