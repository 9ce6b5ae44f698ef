"""A step allocates nothing, binds nothing and brings logits to the host once, for every kind of state."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.backends.onnxruntime.memory_cpu import CpuMemory
from monograph.backends.onnxruntime.rows import rows_of
from monograph.backends.onnxruntime.runtime import Loaded
from monograph.inference.generate import Decoding, Settings
from monograph.inference.scheduler import Scheduler
from slot_nets import Made

PARTS = ["append", "window", "append window", "replace", "append replace window"]
MADE = ("allocate", "upload", "bind", "row", "run")
"""What gives new buffers, views or bindings."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    found = Counter[str]()

    def count(owner: type, name: str) -> None:
        do = getattr(owner, name)

        def counted(*given: Any, **more: Any) -> Any:
            found[f"{owner.__name__}.{name}"] += 1
            return do(*given, **more)

        monkeypatch.setattr(owner, name, counted)

    for name in (*MADE, "download"):
        count(CpuMemory, name)
    for name in ("bind", "run_values"):
        count(Loaded, name)
    return found


def made_things(calls: Counter[str]) -> dict[str, int]:
    return {k: n for k, n in calls.items() if k.split(".")[1] in (*MADE, "run_values")}


@pytest.mark.parametrize("parts", PARTS)
def test_a_batch_steps_over_what_there_is(parts: str, tmp_path: Path, calls: Counter[str]) -> None:
    session = Made(parts, tmp_path / "net", lengths=True, limit=64).open(capacity=512)
    decoding = Decoding(session, None, [[1, 2, 3], [4]], Settings(max_new_tokens=40))
    before: list[Counter[str]] = []
    step = decoding.next

    def counted(tokens: Any) -> Any:
        before.append(calls.copy())
        return step(tokens)

    decoding.next = counted  # type: ignore[method-assign]
    assert list(decoding) == []
    for i in range(4, len(before) - 1):
        new = before[i + 1] - before[i]
        assert not made_things(new), (i, new)
        assert new["CpuMemory.download"] == 1


@pytest.mark.parametrize("parts", PARTS)
def test_rows_step_over_what_there_is_and_logits_stay_where_they_are(
    parts: str, tmp_path: Path, calls: Counter[str]
) -> None:
    rows = rows_of(Made(parts, tmp_path / "net", lengths=True, limit=64).open(capacity=512), 4)
    for i in range(3):
        rows.read(rows.join(), [1] * (i + 1))
    for _ in range(3):  # One binding for each way round that states take turns, the first time.
        rows.step(rows.ordered([0, 1, 2]), [1, 2, 3])
    seen: list[Any] = []
    for step in range(50):
        calls.clear()
        order = rows.ordered([0, 1, 2])
        seen.append(rows.step(order, [step % 5] * 3))
        assert not made_things(calls), (step, calls)
        assert calls["CpuMemory.download"] == 1
    assert all(np.shares_memory(seen[0], x) for x in seen)


def test_a_row_that_joins_again_needs_no_new_binding(tmp_path: Path, calls: Counter[str]) -> None:
    rows = rows_of(Made("append", tmp_path / "net", lengths=True).open(capacity=64), 3)
    live = [rows.join() for _ in range(3)]
    for row in live:
        rows.read(row, [row])
    for n in (3, 2, 1):
        rows.step(rows.ordered(live[:n]), [1] * n)
    for i in range(12):
        rows.leave(live.pop(i % 2))
        calls.clear()
        rows.step(rows.ordered(live), [1, 1])
        assert calls["CpuMemory.bind"] == calls["CpuMemory.allocate"] == 0
        live.append(rows.join())
        rows.read(live[-1], [2])
        calls.clear()
        rows.step(rows.ordered(live), [1, 1, 1])
        assert calls["CpuMemory.bind"] == calls["CpuMemory.allocate"] == 0


def test_a_scheduler_steps_over_what_there_is(tmp_path: Path, calls: Counter[str]) -> None:
    session = Made("append", tmp_path / "net", lengths=True, limit=64).open(capacity=512)
    with Scheduler(session, None, rows=2, prefix_bytes=0) as scheduler:
        batch, counts = scheduler._batch, list[Counter[str]]()
        turn = batch.turn

        def counted() -> bool:
            calls.clear()
            alive = turn()
            counts.append(calls.copy())
            return alive

        batch.turn = counted  # type: ignore[method-assign]
        requests = [scheduler.submit([i], Settings(max_new_tokens=50)) for i in (1, 2)]
        for r in requests:
            r.result(30)
    assert sum(not made_things(c) and c["CpuMemory.download"] == 1 for c in counts) >= len(counts) - 6
