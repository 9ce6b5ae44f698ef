"""Sessions over a device that the host cannot look into: same numbers, and nothing crosses but what was asked for."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_memory import Device, device
from monograph.backends.onnxruntime import Session, build
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.onnxruntime import session as sessions
from monograph.backends.onnxruntime.capture import CHECKED
from monograph.backends.onnxruntime.choices import CHOICES
from monograph.backends.onnxruntime.memory_cpu import CpuMemory
from monograph.backends.onnxruntime.memory_cuda import CudaMemory
from monograph.backends.onnxruntime.rows import rows_of
from monograph.frontends.dsl import Model, load_family
from monograph.inference.errors import GenerationError
from monograph.inference.generate import generate
from monograph.ir.errors import RuntimeInputError
from monograph.ir.manifest import seal
from monograph.ir.weights import Weights
from monograph.passes.differential import random_params
from ort_models import ids_of
from slot_nets import FORMS, WINDOW, Made, Reader
from small_models import OWN, SMALL
from test_rows import Schedule

Array = np.ndarray[Any, Any]
__all__ = ["device"]

PARTS = ("append", "window", "replace", "append window replace", "once append window replace along fixed",
         "window replace nomask", "append along nomask")  # fmt: skip
FAMILIES = ("llama", "gemma3_text", "lfm2", "mamba2", "gpt_neox", "bloom", "whisper", "t5", "deepseek_v3", "gru_lm")
VOCAB = 200
LOGITS = f"float32[3, {VOCAB}]"
CHOOSING = replace(CHOICES["cpu"], next_token=True)


def served(family: str) -> Model:
    """A model of the family whose heads are wide enough for kernels that write caches in place."""
    found = load_family(family)
    fields = {f.name for f in dataclasses.fields(found.config_class)}
    given = {**SMALL, "dim": 64, "head_dim": 16, "rotary_dim": 16, "vocab": VOCAB, **OWN.get(family, {})}
    return found(**{k: v for k, v in given.items() if k in fields})


@cache
def folder(name: str, root: Path, choosing: bool = True) -> Path:
    """A family with random weights, built so that it chooses tokens, as a build for CUDA is."""
    made = served(name)
    path = root / f"{name}-{choosing}"
    build(made, Weights.of(random_params(made.graph())), path, choices=CHOOSING if choosing else None)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("device")


def opened(path: Path, **settings: Any) -> Session:
    return open_session(path, **{"threads": 1, "capacity": 8, **settings})


def began(session: Session, rows: int = 3) -> Array:
    """Logits after ragged prompts, behind a source where there is one."""
    types = session.contract.inputs.get(session.contract.encoder, {})
    rng = np.random.default_rng(3)
    if types:
        sizes = {t.shape[0]: rows for t in types.values()}
        shapes = {k: [n if isinstance(n, int) else sizes.get(n, 8) for n in t.shape] for k, t in types.items()}
        drawn = {k: rng.uniform(1, 2, shape) for k, shape in shapes.items()}
        given = {k: x.astype(types[k].dtype.numpy) for k, x in drawn.items()}
        session.encode(given)
    return session.prefill(ids_of(rows, 7), [7, 2, 4][:rows]).copy()


def wanted(path: Path, steps: int, rows: int = 3) -> list[list[int]]:
    """Greedy ids of a session in ordinary memory, chosen by NumPy from whole logits."""
    with pytest.MonkeyPatch.context() as m:
        m.setitem(sessions.MEMORIES, "cpu", CpuMemory)
        session = opened(path)
        tokens = began(session, rows).argmax(-1)
        found = [tokens.tolist()]
        for _ in range(steps):
            tokens = session.step(tokens).argmax(-1)
            found.append(tokens.tolist())
    return found


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


# -- capture -----------------------------------------------------------------------------------------------------------


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
