"""Steps captured as CUDA graphs, over a device that replays as CUDA does: ids, checks, why some are not captured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_memory import Device, device
from device_models import began, folder, opened, root, wanted
from monograph.backends.onnxruntime import session as sessions
from monograph.backends.onnxruntime.capture import CHECKED
from monograph.backends.onnxruntime.memory_cpu import CpuMemory
from monograph.ir.errors import RuntimeInputError
from monograph.ir.manifest import seal

__all__ = ["device", "root"]


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "lfm2"])
def test_captured_steps_pass_their_check(device: Callable[[], Device], root: Path, name: str) -> None:
    path = folder(name, root)
    session = opened(path, capture="check")
    tokens = began(session).argmax(-1)
    found = [tokens.tolist()]
    for _ in range(20):
        tokens = session.step_greedy(tokens)
        found.append(tokens.tolist())
    assert found == wanted(path, 20)


def test_a_replay_of_the_wrong_buffer_is_noticed(
    device: Callable[[], Device], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What onnxruntime-genai#2446 met: a graph is replayed over buffers that others have taken the place of."""
    session = opened(folder("lfm2", root), capture="check")
    tokens = began(session).argmax(-1)
    first = list[Any]()
    memory = device()
    bind = memory.bind

    def wrong(loaded: Any, inputs: Any, outputs: Any, graph: int = -1) -> Any:
        call = bind(loaded, inputs, outputs, graph)
        if graph >= 0:
            first.append(call)
            return first[0]
        return call

    monkeypatch.setattr(memory, "bind", wrong)
    with pytest.raises(RuntimeInputError, match=r"a captured step gives token \d+ for row \d where an ordinary one"):
        for _ in range(CHECKED):
            tokens = session.step_greedy(tokens)


@pytest.mark.parametrize("fault", ["logits", "capture"])
def test_steps_go_on_without_capture_where_it_does_not_work(
    device: Callable[[], Device], root: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Replays that give other logits, and captures that the runtime refuses while it makes them."""
    path = folder("llama", root)
    session, memory = opened(path), device()
    bind = memory.bind

    def broken(loaded: Any, inputs: Any, outputs: Any, graph: int = -1) -> Any:
        call = bind(loaded, inputs, outputs, graph)
        if graph < 0:
            return call

        class Broken:
            def run(self) -> None:
                if fault == "capture":
                    raise RuntimeInputError("ONNX Runtime: operation not permitted when stream is capturing")
                call.run()
                memory.write(outputs["next_token"], np.array(199))

        return Broken()

    monkeypatch.setattr(memory, "bind", broken)
    tokens = began(session).argmax(-1)
    found = [tokens.tolist()]
    assert session.captured
    for _ in range(20):
        tokens = session.step_greedy(tokens)
        found.append(tokens.tolist())
    assert found == wanted(path, 20)
    told = "captured step gives token 199" if fault == "logits" else "cannot be captured: ONNX Runtime: operation"
    assert not session.captured and told in str(session.captured)


def test_a_new_source_keeps_the_captured_steps(device: Callable[[], Device], root: Path) -> None:
    session = opened(folder("whisper", root), capacity=64)
    for number in range(3):
        tokens = began(session).argmax(-1)
        for _ in range(6):
            tokens = session.step_greedy(tokens)
        if number == 0:
            before = len(device().captured)
    assert len(device().captured) == before == 1


def test_a_session_says_why_it_is_not_captured(device: Callable[[], Device], root: Path, tmp_path: Path) -> None:
    assert str(opened(folder("llama", root)).captured) == "captured"
    off = opened(folder("llama", root), capture=False)
    assert not off.captured and "capture=False" in str(off.captured)
    began(off)
    off.step_greedy([1, 2, 3])
    assert device().replays == 0
    assert "grow" in str(opened(folder("bloom", root)).captured)
    with pytest.MonkeyPatch.context() as m:
        m.setitem(sessions.MEMORIES, "cpu", CpuMemory)
        assert "nothing to capture" in str(opened(folder("llama", root)).captured)


def test_what_a_build_refuses_to_capture_is_told(device: Callable[[], Device], tmp_path: Path) -> None:
    path = folder("llama", tmp_path)
    contract = path / "monograph.json"
    said = json.loads(contract.read_text())
    assert said["uncaptured"] == []
    said["uncaptured"] = ["GatherND at layers.0 breaks replay"]
    contract.write_text(json.dumps(said))
    seal(path)
    session = opened(path)
    assert not session.captured and session.captured.reasons == ("GatherND at layers.0 breaks replay",)
