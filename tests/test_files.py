"""Folders and files that appear whole: after errors, after a kill at any moment, over older ones and beside others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from monograph.ir import MonographError, files
from monograph.ir.files import joined, staged, sweep, whole


def content(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir()}


def write(folder: Path, **texts: str) -> None:
    with whole(folder) as stage:
        for name, text in texts.items():
            with stage.open(name) as file:
                file.write(text.encode())


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    write(out, one="1", two="2")
    write(out, two="3")
    assert content(out) == {"two": "3"}
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_without_an_exchange_of_names_the_same_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_exchanged", lambda a, b: False)
    test_a_folder_takes_the_place_of_an_older_one(tmp_path)


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OSError, match="disk full"), whole(out) as stage:
        stage.path("one").write_text("1")
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == []
    write(out, one="1")
    with pytest.raises(OSError, match="disk full"), whole(out) as stage:
        stage.path("one").write_text("2")
        raise OSError("disk full")
    assert content(out) == {"one": "1"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_may_not_be_replaced_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(MonographError, match="holds notes"), whole(tmp_path, replaces=lambda f: "holds notes"):
        raise AssertionError
    with pytest.raises(MonographError, match="is a file, not a folder"), whole(tmp_path / "notes"):
        raise AssertionError
    assert content(tmp_path) == {"notes": "mine"}
    (tmp_path / "empty").mkdir()
    with whole(tmp_path / "empty", replaces=lambda f: "never") as stage:
        stage.path("one").write_text("1")
    assert content(tmp_path / "empty") == {"one": "1"}


def test_the_first_of_two_writers_stays_where_that_is_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with whole(out, keep=True) as late:
        late.path("who").write_text("late")
        write(out, who="first")
    assert content(out) == {"who": "first"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "real", one="1")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", two="2")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == {"two": "2"}


def test_a_mount_point_gets_its_files_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").write_text("0")
    monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path)
    write(tmp_path, one="1")
    assert content(tmp_path) == {"one": "1"}


@pytest.mark.parametrize("name", ["file", "file/deep", "loop", "nul\0", "n" * 300])
@pytest.mark.parametrize("way", [whole, joined, staged])
def test_what_cannot_be_a_folder_is_refused(tmp_path: Path, name: str, way: Any) -> None:
    (tmp_path / "file").write_text("0")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with (
        pytest.raises(MonographError, match=r"is a file, not|leads to itself|cannot be a folder"),
        way(tmp_path / name),
    ):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "loop"]


def test_a_name_may_be_as_long_as_the_system_has_it(tmp_path: Path) -> None:
    write(tmp_path / ("ö" * 127), one="1")
    write(tmp_path / ("ö" * 127), one="2")
    assert [content(p) for p in tmp_path.iterdir()] == [{"one": "2"}]


KILLED = """
import os, sys
from pathlib import Path
from monograph.ir import files

place, when = Path(sys.argv[1]), int(sys.argv[2])
count = 0

def maybe_die(name, real):
    def call(*arguments, **options):
        global count
        count += 1
        if count == when:
            os.kill(os.getpid(), 9)
        return real(*arguments, **options)
    return call

for owner, name in ((os, "fsync"), (os, "mkdir"), (os, "rename"), (files.shutil, "rmtree"), (files, "_exchanged")):
    setattr(owner, name, maybe_die(name, getattr(owner, name)))
with getattr(files, sys.argv[3])(place / "out") as stage:
    for name in ("a", "b"):
        with stage.open(name) as f:
            f.write(b"new")
print(count)
"""


@pytest.mark.parametrize("way", ["whole", "joined"])
def test_a_kill_at_any_moment_leaves_one_whole_folder_and_the_next_writer_cleans_up(tmp_path: Path, way: str) -> None:
    ended = False
    for when in range(1, 60):
        place = tmp_path / str(when)
        write(place / "out", a="old", c="old")
        done = subprocess.run([sys.executable, "-c", KILLED, place, str(when), way], capture_output=True, check=False)
        old, new = {"a": "old", "c": "old"}, {"a": "new", "b": "new"}
        new |= {"c": "old"} if way == "joined" else {}
        assert content(place / "out") in ((new,) if done.returncode == 0 else (old, new)), when
        write(place / "out", z="last")
        assert content(place / "out") == {"z": "last"}
        assert [p.name for p in place.iterdir()] == ["out"], when
        ended = done.returncode == 0
        if ended:
            break
    assert ended
    assert when > 5


def test_a_writer_that_lives_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with whole(out) as slow:
        slow.path("who").write_text("slow")
        write(out, who="fast")
        sweep(out)
        assert slow.path("who").exists()
    assert content(out) == {"who": "slow"}


def test_staged_files_go_beside_others(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("stays")
    (tmp_path / "old").write_text("goes")
    with staged(tmp_path) as stage:
        with stage.open("one") as file:
            file.write(b"1")
        stage.stale.add(tmp_path / "old")
        assert content_of_files(tmp_path) == {"other": "stays", "old": "goes"}
    assert content(tmp_path) == {"other": "stays", "one": "1"}
    with pytest.raises(OSError, match="no"), staged(tmp_path / "new" / "deep") as stage:
        stage.path("one").write_text("1")
        raise OSError("no")
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_joined_files_go_beside_others(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, other="stays", old="goes", one="0")
    for deep in (False, True):
        with joined(out) as stage:
            with stage.open("one") as file:
                file.write(b"1")
            stage.stale.add(out / "old")
            assert content_of_files(out)["one"] == ("1" if deep else "0")
        assert content_of_files(out) == {"other": "stays", "one": "1"}
        assert [p.name for p in tmp_path.iterdir()] == ["out"]
        (out / "folder").mkdir(exist_ok=True)


def content_of_files(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir() if p.is_file()}
