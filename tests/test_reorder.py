"""Rows that become other rows, and answers after every token: the session against itself, fed row by row."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.backends.onnxruntime import Session, build
from monograph.backends.onnxruntime import open as open_session
from monograph.backends.onnxruntime.reorder import copies
from monograph.frontends.dsl import Model, load_family
from monograph.ir import MonographError
from monograph.ir.weights import Weights
from ort_models import random_params
from small_models import OWN, SMALL

RNG = np.random.default_rng(7)
KINDS = ("llama", "gemma3_text", "mistral", "gpt2", "bloom", "mamba2", "lfm2", "lstm_lm", "deepseek_v3")


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Session]:
    """A session for each kind of state."""
    found: dict[str, Session] = {}
    for kind in KINDS:
        model, folder = wide(kind), tmp_path_factory.mktemp(kind)
        build(model, weights_of(model), folder)
        found[kind] = open_session(folder, threads=1, capacity=8)
    return found


def wide(kind: str) -> Model:
    """A model whose heads are wide enough for the kernel that writes caches in place, where it has such heads."""
    family = load_family(kind)
    fields = {f.name for f in dataclasses.fields(family.config_class)}
    given = {**SMALL, **OWN.get(kind, {}), "dim": 32, "head_dim": 8}
    given |= {"layer_types": ["conv", "full_attention"]} if kind == "lfm2" else {}
    return family(**{k: v for k, v in given.items() if k in fields})


def weights_of(model: Any) -> Weights:
    return Weights.of(random_params(model.graph()))


def read(session: Session, rows: list[list[int]]) -> np.ndarray[Any, Any]:
    width = max(map(len, rows))
    tokens = np.array([r + [0] * (width - len(r)) for r in rows])
    return session.prefill(tokens, [len(r) for r in rows])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parents", [[0, 0, 0], [2, 1, 0], [1, 2, 0], [1, 1, 2], [2, 0, 0, 1, 1], [1]])
def test_rows_go_on_as_their_parents_do(sessions: dict[str, Session], kind: str, parents: list[int]) -> None:
    session = sessions[kind]
    rows = [RNG.integers(1, 50, n).tolist() for n in (3, 7, 5)]
    read(session, rows)
    session.append(RNG.integers(1, 50, (3, 2)).repeat(1, 0))
    session.prefill(*padded(rows))
    session.reorder(parents)
    assert session.lengths.tolist() == [len(rows[p]) for p in parents]
    new = RNG.integers(1, 50, len(parents))
    found = session.step(new)
    wanted = read(session, [rows[p] + [int(t)] for p, t in zip(parents, new, strict=True)])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def padded(rows: list[list[int]]) -> tuple[np.ndarray[Any, Any], list[int]]:
    width = max(map(len, rows))
    return np.array([r + [0] * (width - len(r)) for r in rows]), [len(r) for r in rows]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("counts", [[4], [1], [3, 1], [2, 2, 2], [5, 1, 3]])
def test_every_token_has_its_answer(sessions: dict[str, Session], kind: str, counts: list[int]) -> None:
    session = sessions[kind]
    rows = [RNG.integers(1, 50, n).tolist() for n in (9, 4, 6)][: len(counts)]
    new = RNG.integers(1, 50, (len(counts), max(counts)))
    read(session, rows)
    found = session.append(new, counts, every=True)
    last = read(session, rows)
    last = session.append(new, counts)
    for b, count in enumerate(counts):
        np.testing.assert_allclose(found[b, count - 1], last[b], rtol=1e-5, atol=1e-6)
        for i in range(count):
            alone = read(session, [rows[b] + new[b, : i + 1].tolist()])
            np.testing.assert_allclose(found[b, i], alone[0], rtol=1e-4, atol=1e-5)


def test_what_rows_have_in_common_is_not_copied(sessions: dict[str, Session]) -> None:
    session = sessions["llama"]
    read(session, [[5, 6, 7, 8]])
    session.reorder([0, 0])
    session.step([9, 10])
    session.step([11, 12])
    buffer = session.memory.download(session._cache.held[0].buffer)  # type: ignore[union-attr]
    buffer[1, :, 0] += 100  # What is alike stays where it is: this is not written over.
    session.reorder([0, 0], [4, 4])
    assert np.abs(buffer[1, :, 0] - buffer[0, :, 0]).min() > 50
    assert np.array_equal(buffer[1, :, 4:6], buffer[0, :, 4:6])


def test_what_stays_for_a_source_is_not_copied_for_its_own_rows(tmp_path: Path) -> None:
    """Rows of one source change places without a copy of what its encoder left; rows of another source take theirs."""
    model = wide("t5")
    build(model, weights_of(model), tmp_path / "t5")
    session = open_session(tmp_path / "t5", threads=1)
    session.encode({"input_ids": np.array([[5, 6, 7], [9, 9, 8]])})
    alone = session.prefill(np.array([[1], [1]]), [1, 1])
    session.reorder([0, 0, 1, 1])
    state = session._cache
    assert state is not None
    held = dict(state.fixed)  # type: ignore[attr-defined]
    session.reorder([1, 1, 3, 2])
    assert all(state.fixed[k] is held[k] for k in held)  # type: ignore[attr-defined]
    session.reorder([2, 0, 0, 1])
    assert any(state.fixed[k] is not held[k] for k in held)  # type: ignore[attr-defined]
    found = session.step(np.array([4, 4, 4, 4]))
    session.encode({"input_ids": np.array([[9, 9, 8], [5, 6, 7], [5, 6, 7], [5, 6, 7]])})
    again = session.prefill(np.array([[1], [1], [1], [1]]), [1] * 4)
    np.testing.assert_allclose(again[:2], alone[::-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, session.step(np.array([4, 4, 4, 4])), rtol=1e-4, atol=1e-5)


def test_orders_of_copies() -> None:
    assert copies(np.array([0, 1, 2])) == []
    assert copies(np.array([1, 0])) is None
    for _ in range(200):
        parents = RNG.integers(0, 6, 6)
        order, rows = copies(parents), list(range(6))
        if order is not None:
            for to, source in order:
                rows[to] = rows[source]
            assert rows == parents.tolist()


@pytest.mark.parametrize(("parents", "common", "said"), [
    ([0, 3], None, "parents holds 3"), ([0, 1], [1], "common is"), ([[0]], None, "rank 1"), ([-1, 0], None, "-1"),
])  # fmt: skip
def test_rows_that_are_not_there(sessions: dict[str, Session], parents: Any, common: Any, said: str) -> None:
    session = sessions["llama"]
    read(session, [[1, 2], [3]])
    with pytest.raises(MonographError, match=said):
        session.reorder(parents, common)
