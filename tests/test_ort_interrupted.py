"""Calls that die in the middle: the state is as it was, or forgotten, and the error says which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from monograph.backends.onnxruntime import held
from monograph.backends.onnxruntime.memory_cpu import CpuMemory
from monograph.ir.errors import RuntimeInputError
from slot_nets import FORMS, Made, Reader


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    folder, known = tmp_path_factory.mktemp("slots"), dict[str, Made]()

    def get(parts: str, *, lengths: bool, **settings: Any) -> Made:
        key = f"{parts} {lengths} {settings}"
        if key not in known:
            known[key] = Made(parts, folder / str(len(known)), lengths=lengths, **settings)
        return known[key]

    return get


# -- calls that die ---------------------------------------------------------------------------------------------------


class Dying:
    """Makes the n-th call of the runtime from now on fail, as a full disk or a missing kernel would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        self.left, self.error = -1, error
        for name in ("bind", "run"):
            monkeypatch.setattr(CpuMemory, name, self.wrapped(getattr(CpuMemory, name), name))

    def wrapped(self, method: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(memory: CpuMemory, *args: Any) -> Any:
            if name == "run":
                self.count()
                return method(memory, *args)
            bound = method(memory, *args)
            run = bound.run

            def counted() -> None:
                run()
                self.count()

            bound.run = counted
            return bound

        return call

    def count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


@pytest.mark.parametrize("lengths", FORMS)
@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_error_in_the_middle_changes_nothing(
    made: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, lengths: bool, call: int
) -> None:
    """A chunk that dies at its first, second or third row, and goes through when it is given again."""
    m = made("append window replace", lengths=lengths)
    dying = Dying(monkeypatch, RuntimeInputError("no room"))
    reader = Reader(m, m.open(), 3)
    reader.prefill([7, 2, 4])
    reader.step()
    before, state = [list(r) for r in reader.rows], reader.rng.bit_generator.state
    dying.left = call
    with pytest.raises(RuntimeInputError, match=r"no room \(what was read before stays\)"):
        reader.append([3, 1, 2])
    reader.rows = before
    assert reader.session.lengths.tolist() == [8, 3, 5]
    reader.step()
    reader.rng.bit_generator.state = state
    reader.append([3, 1, 2])
    reader.step()
    dying.left = 1
    with pytest.raises(RuntimeInputError, match=r"no room \(everything read is forgotten"):
        reader.prefill([2, 2, 2])
    assert reader.session.lengths.tolist() == []
    reader.prefill([2, 5, 2])
    reader.step()


def test_an_error_between_the_pieces_of_a_chunk_forgets(
    made: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "SLACK", 4)
    m = made("window replace window2", lengths=True, limit=0)
    dying = Dying(monkeypatch, RuntimeInputError("no room"))
    reader = Reader(m, m.open(), 1)
    reader.prefill([7])
    dying.left = 2
    with pytest.raises(RuntimeInputError, match=r"no room \(everything read is forgotten: call `prefill` first\)"):
        reader.append([6])
    assert reader.session.lengths.tolist() == []
    with pytest.raises(RuntimeInputError, match="nothing has been read yet"):
        reader.session.step([1])
    reader.prefill([7])
    reader.append([6])


@pytest.mark.parametrize("lengths", FORMS)
def test_an_interrupt_leaves_nothing_half_read(
    made: Callable[..., Made], monkeypatch: pytest.MonkeyPatch, lengths: bool
) -> None:
    m = made("append window replace", lengths=lengths)
    dying = Dying(monkeypatch, KeyboardInterrupt())
    reader = Reader(m, m.open(), 2)
    reader.prefill([3, 2])
    dying.left = 1
    ids = np.array([1, 2])
    with pytest.raises(KeyboardInterrupt):
        reader.session.step(ids)
    assert reader.session.lengths.tolist() == ([] if lengths else [3, 2]), "all of it, or nothing"
    for counts in ([3, 2], [1, 6]):
        reader.prefill(counts)
        reader.step()
        reader.step()


def test_room_is_looked_at_before_anything_is_read(made: Callable[..., Made]) -> None:
    for lengths in (True, False):
        m = made("append window replace", lengths=lengths)
        reader = Reader(m, m.open(), 2)
        reader.prefill([57, 2])
        with pytest.raises(RuntimeInputError, match="61 tokens do not fit: the model was built for at most 60"):
            reader.session.append(np.zeros((2, 4), np.int64))
        reader.append([3, 4])
