"""Sessions over a device that the host cannot look into: same numbers, and nothing crosses but what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_memory import Device, device
from device_models import CHOOSING, LOGITS, VOCAB, began, folder, opened, root, served, wanted
from monograph.backends.onnxruntime import Session, build
from monograph.backends.onnxruntime import session as sessions
from monograph.backends.onnxruntime.memory_cpu import CpuMemory
from monograph.backends.onnxruntime.memory_cuda import CudaMemory
from monograph.backends.onnxruntime.rows import rows_of
from monograph.inference.errors import GenerationError
from monograph.inference.generate import generate
from monograph.ir.errors import RuntimeInputError
from monograph.ir.weights import Weights
from monograph.passes.differential import random_params
from ort_models import ids_of
from slot_nets import FORMS, WINDOW, Made, Reader
from test_rows import Schedule

Array = np.ndarray[Any, Any]
__all__ = ["device", "root"]

PARTS = ("append", "window", "replace", "append window replace", "once append window replace along fixed",
         "window replace nomask", "append along nomask")  # fmt: skip
FAMILIES = ("llama", "gemma3_text", "lfm2", "mamba2", "gpt_neox", "bloom", "whisper", "t5", "deepseek_v3", "gru_lm")
# -- the same numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("lengths", FORMS)
@pytest.mark.parametrize("parts", PARTS)
def test_prompts_steps_chunks_and_growth(
    device: Callable[[], Device], tmp_path: Path, parts: str, lengths: bool, batch: int
) -> None:
    """Rows of every growth of a slot, against full forwards: growth of buffers, ragged chunks, windows moved down."""
    made = Made(parts, tmp_path / "net", lengths=lengths)
    reader = Reader(made, made.open(), batch)
    reader.prefill([9, 1, 4][:batch])
    for _ in range(3 * WINDOW):
        reader.step()
    reader.append([4] * batch)
    reader.append([1, 6, 3][:batch])
    reader.step()
    if "replace" not in parts and "window" not in parts:
        reader.truncate([max(1, len(r) - 3) for r in reader.rows])
        reader.step()
    reader.prefill([2] * batch)
    reader.step()
    assert device().replays > 0 or not lengths


@pytest.mark.parametrize("parts", ["append", "append replace window", "once append", "along fixed replace append"])
def test_rows_that_come_and_go(device: Callable[[], Device], tmp_path: Path, parts: str) -> None:
    made = Made(parts, tmp_path / "net", lengths=True)
    for seed in range(2):
        Schedule(made, seed).run(80)
    assert device().replays > 0


# -- what crosses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_greedy_step_brings_a_token_a_row_and_makes_nothing(
    device: Callable[[], Device], root: Path, name: str
) -> None:
    path = folder(name, root)
    expected = wanted(path, 20)
    session = opened(path, capacity=64)
    tokens = began(session).argmax(-1)
    found, memory = [tokens.tolist()], device()
    for number in range(20):
        if number == 9:  # Bindings of both turns of a state are there by now, and checked.
            memory.forget()
        tokens = session.step_greedy(tokens)
        found.append(tokens.tolist())
    assert found == expected
    crossing = [s for s in memory.downloads if not s.startswith("int64[3")]
    assert crossing == [], "only tokens leave the device"
    assert len(memory.downloads) == 11
    if session.contract.lengths:
        assert session.captured and not session.captured.reasons
        assert memory.made == 0 and memory.bound == 0, "no buffer and no binding after the first steps"
        assert memory.replays == 11
        assert {*memory.uploads} <= {"int64[3, 1]", "int32[3]"}, "positions and counts; the tokens are there"
    else:
        assert "grow" in str(session.captured)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "lfm2"])
def test_whole_logits_cross_only_when_they_are_asked_for(device: Callable[[], Device], root: Path, name: str) -> None:
    """The check that fails where a greedy step reads logits on the host: here it is asked to."""
    session = opened(folder(name, root), capacity=64)
    tokens = began(session).argmax(-1)
    for _ in range(9):
        tokens = session.step_greedy(tokens)
    memory = device()
    memory.forget()
    session.step(tokens)
    assert memory.downloads == [LOGITS]
    memory.forget()
    session.step_greedy(tokens)
    assert memory.downloads == ["int64[3, 1]"]


def test_logits_on_the_host_in_a_greedy_step_are_noticed(device: Callable[[], Device], root: Path) -> None:
    """A folder whose graph does not choose tokens has to bring its logits over, and the device tells."""
    session = opened(folder("llama", root, choosing=False), capacity=64)
    tokens = began(session).argmax(-1)
    memory = device()
    memory.forget()
    tokens = session.step_greedy(tokens)
    assert {*memory.downloads} == {LOGITS}


def test_tokens_that_others_chose_are_uploaded(device: Callable[[], Device], root: Path) -> None:
    session = opened(folder("llama", root), capacity=64)
    began(session)
    first = session.step_greedy(np.array([1, 2, 3]))
    memory = device()
    for _ in range(8):
        first = session.step_greedy(first)
    memory.forget()
    first = session.step_greedy(first)
    taken = len(memory.uploads)
    memory.forget()
    session.step_greedy((first + 1) % VOCAB)
    assert len(memory.uploads) == taken + 1, "the tokens of the caller"


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "lfm2"])
def test_drafts_are_read_over_what_there_is(device: Callable[[], Device], root: Path, name: str) -> None:
    """Chunks of as many tokens as before, as speculative decoding reads them, make no buffer and no binding."""
    path = folder(name, root)
    session = opened(path, capacity=64)
    ids = ids_of(1, 40, seed=7)
    session.prefill(ids[:, :3], [3])
    got: list[Array] = []
    for number, start in enumerate(range(3, 39, 4)):
        if number == 2:
            device().forget()
        got.append(session.append(ids[:, start : start + 4], every=True)[0].copy())
    assert device().bound == device().made == 0
    with pytest.MonkeyPatch.context() as m:
        m.setitem(sessions.MEMORIES, "cpu", CpuMemory)
        plain = opened(path)
        plain.prefill(ids[:, :3], [3])
        for found, start in zip(np.concatenate(got), range(3, 39), strict=True):
            np.testing.assert_allclose(found, plain.step(ids[:, start])[0], rtol=0, atol=1e-4)


def test_a_device_buffer_refuses_the_host(device: Callable[[], Device]) -> None:
    for memory in (Device(), CudaMemory("cpu", "CPUExecutionProvider")):
        buffer = memory.allocate((2, 3), np.dtype(np.float32))
        with pytest.raises((AssertionError, TypeError), match=r"the device|download"):
            np.asarray(buffer)
    with pytest.raises(AssertionError, match="the host reads"):
        Device().empty((2,), np.dtype(np.float32)).value.numpy()


# -- choosing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, 64])
def test_best_logits_are_all_that_can_be_drawn(device: Callable[[], Device], root: Path, k: int) -> None:
    path = folder("llama", root)
    session = opened(path)
    tokens = began(session).argmax(-1)
    whole = session.step(tokens).copy()
    session.truncate([7, 2, 4])
    some = session.step_best(tokens, k)
    least = np.sort(whole, axis=-1)[:, -min(k, whole.shape[1])][:, None]
    assert np.array_equal(some[whole >= least], whole[whole >= least])
    assert np.all((some == whole) | (some == -np.inf))
    with pytest.raises(RuntimeInputError, match="k is 65, expected 1 to 64"):
        session.step_best(tokens, 65)


SAMPLINGS: tuple[dict[str, Any], ...] = (
    {}, {"temperature": 0.8, "top_k": 5, "seed": 1}, {"temperature": 1.3, "top_k": 64, "top_p": 0.9, "seed": 2},
    {"temperature": 0.7, "top_k": 20, "min_p": 0.1, "seed": 3}, {"temperature": 1.0, "top_p": 0.8, "seed": 4},
    {"repetition_penalty": 1.3}, {"temperature": 2.0, "seed": 5},
)  # fmt: skip


@pytest.mark.parametrize("settings", SAMPLINGS, ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "bloom"])
def test_generation_gives_the_same_ids_on_the_device(
    device: Callable[[], Device], root: Path, name: str, settings: Mapping[str, Any]
) -> None:
    path = folder(name, root)
    prompts = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]

    def ids(session: Session) -> list[list[int]]:
        return [g.ids for g in generate(session, None, prompts, max_new_tokens=24, **settings)]

    on_device = ids(opened(path))
    crossed = device().downloads
    with pytest.MonkeyPatch.context() as m:
        m.setitem(sessions.MEMORIES, "cpu", CpuMemory)
        assert ids(opened(path)) == on_device
    whole = "repetition_penalty" in settings or ("temperature" in settings and "top_k" not in settings)
    steps = 24 if whole or (name == "bloom" and settings) else 1  # The logits after the prompts cross in any case.
    assert sum(shape == LOGITS for shape in crossed) == steps


def test_a_token_that_cannot_be_chosen_is_refused(device: Callable[[], Device], tmp_path: Path) -> None:
    made = served("llama")
    params = random_params(made.graph())
    for bad in (np.nan, np.inf):
        name = next(k for k in params if k.endswith("lm_head.weight"))
        broken = {**params, name: params[name].copy()}
        broken[name][7] = bad
        path = tmp_path / str(bad)
        build(made, Weights.of(broken), path, choices=CHOOSING)
        with pytest.raises(GenerationError, match="largest logit of row 0 is"):
            generate(opened(path), None, [[1, 2]], max_new_tokens=4)
        session = opened(path)
        session.prefill(np.array([[1, 2]]), [2])
        assert session.step_greedy([3]).tolist() == [-1]


def test_rows_choose_tokens_on_the_device(device: Callable[[], Device], root: Path) -> None:
    path = folder("llama", root)
    session = opened(path)
    rows = rows_of(session, 3)
    prompts = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
    names = [rows.join() for _ in prompts]
    tokens = np.array([int(rows.read(r, p).argmax()) for r, p in zip(names, prompts, strict=True)])
    found = [tokens.tolist()]
    memory = device()
    for number in range(12):
        if number == 2:
            memory.forget()
        tokens = rows.step_greedy(names, tokens)
        found.append(tokens.tolist())
    assert [s for s in memory.downloads if not s.startswith("int64")] == []
    plain = generate(opened(path), None, prompts, max_new_tokens=13)
    assert [list(c) for c in zip(*found, strict=True)] == [g.ids for g in plain]
