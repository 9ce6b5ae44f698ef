"""Rows that come and go: whatever joins, leaves, steps, forks and is cut beside it, a row says what it says alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.backends.onnxruntime import held
from monograph.backends.onnxruntime.rows import Pooled, rows_of
from monograph.ir.errors import RuntimeInputError
from slot_nets import FORMS, VOCAB, Made, close

Array = np.ndarray[Any, Any]
PARTS = ["append", "window", "append window", "replace", "append replace window", "once append", "once replace window",
         "along append", "fixed append window", "along fixed replace append", "nomask append"]  # fmt: skip


class Schedule:
    """Random joins, reads, steps, forks, cuts and leaves; every answer is held against a full forward of its row."""

    def __init__(self, made: Made, seed: int, most: int = 4, **settings: Any) -> None:
        self.made, self.rng = made, np.random.default_rng(seed)
        self.rows = rows_of(made.open(**settings), most)
        self.most = most
        self.ids: dict[int, list[int]] = {}
        self.sounds: dict[int, list[Array]] = {}
        self.fixed: dict[int, dict[str, Array]] = {}
        self.cuts = not {"replace", "window"} & {*made_parts(made)}

    def run(self, turns: int) -> None:
        for _ in range(turns):
            action = self.rng.choice(["join", "read", "read", "step", "step", "step", "leave", "fork", "cut"])
            getattr(self, action)()
        assert {r: self.rows.length(r) for r in self.ids} == {r: len(x) for r, x in self.ids.items()}

    def join(self) -> None:
        if len(self.ids) < self.most:
            frames = int(self.rng.choice([3, 6]))
            given = {"style": (1, 16), "frames": (1, frames, 4)}
            fixed = {
                k: self.rng.standard_normal(s, np.float32) for k, s in given.items() if k in self.made.plain.inputs
            }
            row = self.rows.join(fixed)
            self.ids[row], self.sounds[row], self.fixed[row] = [], [], fixed

    def read(self) -> None:
        row = self.any()
        if row is None:
            return
        count = min(int(self.rng.integers(1, 9)), 50 - len(self.ids[row]))
        if count < 1:
            return
        ids, along = self.more([row], count)
        every = bool(self.rng.random() < 0.4)
        got = self.rows.read(row, ids[0], every=every, inputs=along)
        wanted = self.wanted(row)
        close(got, wanted[-count:] if every else wanted[-1], ("read", row, count, every))

    def step(self) -> None:
        able = [r for r, x in self.ids.items() if 0 < len(x) < 50]
        if not able:
            return
        rows = self.rng.permutation(able)[: int(self.rng.integers(1, len(able) + 1))].tolist()
        ids, along = self.more(rows, 1)
        got = self.rows.step(rows, ids[:, 0], along).copy()
        for row, logits in zip(rows, got, strict=True):
            close(logits, self.wanted(row)[-1], ("step", rows, row))

    def leave(self) -> None:
        row = self.any()
        if row is not None and self.rng.random() < 0.5:
            self.rows.leave(row)
            for kept in (self.ids, self.sounds, self.fixed):
                del kept[row]

    def fork(self) -> None:
        row = self.any()
        if row is not None and len(self.ids) < self.most:
            new = self.rows.fork(row)
            self.ids[new], self.sounds[new] = list(self.ids[row]), list(self.sounds[row])
            self.fixed[new] = self.fixed[row]

    def cut(self) -> None:
        row = self.any()
        if row is None or not self.ids[row]:
            return
        length = int(self.rng.integers(1, len(self.ids[row]) + 1))
        try:
            self.rows.truncate(row, length)
        except RuntimeInputError:
            assert not self.cuts
            return
        self.ids[row], self.sounds[row] = self.ids[row][:length], self.sounds[row][:length]

    def any(self) -> int | None:
        return int(self.rng.choice([*self.ids])) if self.ids else None

    def more(self, rows: list[int], count: int) -> tuple[Array, dict[str, Array]]:
        ids = self.rng.integers(0, VOCAB, (len(rows), count))
        sound = self.rng.standard_normal((len(rows), count, 3), np.float32)
        for i, row in enumerate(rows):
            self.ids[row] += ids[i].tolist()
            self.sounds[row] += list(sound[i])
        return ids, {"sound": sound} if "sound" in self.made.plain.inputs else {}

    def wanted(self, row: int) -> Array:
        return self.made.full(np.array(self.ids[row]), sound=np.array([self.sounds[row]]), **self.fixed[row])[0]


def made_parts(made: Made) -> list[str]:
    return [s.growth.value for s in made.contract.slots]


@pytest.mark.parametrize("lengths", FORMS)
@pytest.mark.parametrize("parts", PARTS)
def test_a_row_says_what_it_says_alone(parts: str, lengths: bool, tmp_path: Path) -> None:
    made = Made(parts, tmp_path / "net", lengths=lengths)
    for seed in range(3):
        Schedule(made, seed).run(80)


@pytest.mark.parametrize("slack", [1, 3])
@pytest.mark.parametrize("parts", ["window", "append window", "append replace window", "once replace window"])
def test_windows_that_are_full_are_moved_down_and_read_apart(
    parts: str, slack: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "SLACK", slack)
    made = Made(parts, tmp_path / "net", lengths=True)
    for seed in range(3, 6):
        Schedule(made, seed).run(120)


def test_rows_that_cannot_step_together_say_why(tmp_path: Path) -> None:
    nets = {"append": True, "replace": True, "nomask replace": True, "nomask append": False}
    for i, (parts, together) in enumerate(nets.items()):
        rows = rows_of(Made(parts, tmp_path / f"{i}", lengths=False).open(), 2)
        assert (rows.alone == "") == together, parts
    rows = rows_of(Made("append", tmp_path / "alone", lengths=False, alone="they mix").open(), 2)
    assert rows.alone == "they mix"
    rows = rows_of(Made("append", tmp_path / "lengths", lengths=True).open(), 2)
    assert isinstance(rows, Pooled) and rows.alone == ""


def test_buffers_grow_with_rows_and_what_a_long_one_took_is_given_back(tmp_path: Path) -> None:
    made = Made("append", tmp_path / "net", lengths=True)
    rows = rows_of(made.open(capacity=4), 2)
    row, rng = rows.join(), np.random.default_rng(0)
    ids = rng.integers(0, VOCAB, 50)
    first = rows.bytes
    for i in range(0, 50, 10):
        close(rows.read(row, ids[i : i + 10]), made.full(ids[: i + 10])[0, -1])
    assert rows.bytes >= 12 * first
    rows.leave(row)
    assert rows.bytes == 0
    row = rows.join()
    close(rows.read(row, ids[:3]), made.full(ids[:3])[0, -1])
    assert rows.bytes == first
    rows.leave(row)
    assert rows.bytes == first, "a pool of ordinary size stays for the next row"


@pytest.mark.parametrize("lengths", FORMS)
def test_a_row_that_is_not_there_and_one_too_many_are_told(lengths: bool, tmp_path: Path) -> None:
    rows = rows_of(Made("append", tmp_path / "net", lengths=lengths).open(), 2)
    first = rows.join()
    rows.join()
    with pytest.raises(RuntimeInputError, match="2 rows are there"):
        rows.join()
    rows.read(first, [1, 2, 3])
    with pytest.raises(RuntimeInputError, match="a row of 3 tokens cannot be cut to 4"):
        rows.truncate(first, 4)
    rows.leave(first)
    with pytest.raises(RuntimeInputError, match=f"there is no row {first}"):
        rows.read(first, [1])
    with pytest.raises(RuntimeInputError, match="token"):
        rows.read(rows.join(), [VOCAB])
