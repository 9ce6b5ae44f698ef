"""Sessions of built folders: any mask, prompts and steps, ragged batches, limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from monograph.backends.onnxruntime import Session
from monograph.backends.onnxruntime.compact import Compact
from monograph.backends.onnxruntime.guard import default_positions, lengths_allowed, right_padded
from monograph.backends.onnxruntime.padded import Padded
from monograph.ir.errors import RuntimeInputError
from monograph.passes.differential import MASKS, attention_mask
from ort_models import (
    CACHED,
    GENERATING,
    ONE_GRAPH,
    POSITIONS,
    VOCAB,
    Built,
    builder,
    close,
    ids_of,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    return builder(tmp_path_factory.mktemp("built"))


# -- the guard --------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=1, max_size=3))
def test_right_padded_means_ones_then_zeros(rows: list[list[int]]) -> None:
    mask = np.array(rows)
    shapes = [[1] * n + [0] * (4 - n) for n in range(1, 5)]
    found = right_padded(mask)
    if all(r in shapes for r in rows):
        assert found is not None and found.tolist() == [sum(r) for r in rows]
    else:
        assert found is None


def test_lengths_are_allowed_only_where_they_say_everything() -> None:
    ones, padded = np.ones((2, 5), np.int64), np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    assert lengths_allowed(ones, None, 5, False) is not None
    assert lengths_allowed(padded, None, 5, False) is not None
    assert lengths_allowed(padded, None, 5, True) is None, "under a window, padding has keys here and none there"
    assert lengths_allowed(padded, None, 2, False) is None, "padding behind a past hides the new tokens"
    assert lengths_allowed(ones, None, 2, False) is None, "the kernel takes several new tokens of one row only"
    assert lengths_allowed(ones[:1], None, 2, False) is not None
    assert lengths_allowed(ones, None, 1, False) is not None
    assert lengths_allowed(ones, np.arange(5)[None] + np.zeros((2, 1), int), 5, False) is not None
    assert lengths_allowed(ones, np.arange(1, 6)[None] + np.zeros((2, 1), int), 5, False) is None
    assert lengths_allowed(np.array([[0, 0]]), None, 2, False) is None


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", GENERATING)
def test_run_with_every_mask(built: Callable[[str], Built], name: str, kind: str, batch: int) -> None:
    b = built(name)
    session = b.open()
    ids, mask = ids_of(batch, 7), attention_mask(kind, batch, 7)
    found = session.run({"input_ids": ids, "attention_mask": mask})
    close(found["logits"][mask == 1], b.logits(ids, mask)[mask == 1])
    by_lengths = right_padded(mask) is not None and (name != "window" or mask.all())
    assert set(session._loaded) == {"model.onnx"} | (
        set() if by_lengths or name in ONE_GRAPH else {"model.masked.onnx"}
    )
    assert np.isfinite(found["logits"]).all()


def test_a_row_that_is_all_padding_is_harmless(built: Callable[[str], Built]) -> None:
    b = built("llama")
    ids, mask = ids_of(3, 6), attention_mask("left-padded", 3, 6)
    mask[1] = 0
    found = b.open().run({"input_ids": ids, "attention_mask": mask})["logits"]
    close(found, b.logits(ids, mask))


@pytest.mark.parametrize("name", ["llama", "gpt2", "narrow"])
def test_positions_that_were_asked_for(built: Callable[[str], Built], name: str) -> None:
    b = built(name)
    ids = ids_of(2, 5)
    positions = np.array([[3, 4, 5, 6, 7], [9, 2, 2, 0, 30]])
    session = b.open()
    found = session.run({"input_ids": ids, "position_ids": positions})["logits"]
    close(found, b.logits(ids, positions=positions))
    assert ("model.masked.onnx" in session._loaded) == (name == "llama"), "only llama's kernel makes its own positions"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", MASKS)
def test_run_with_pasts(built: Callable[[str], Built], kind: str, batch: int) -> None:
    """Two calls, the second with the presents of the first as pasts, equal one."""
    b = built("llama")
    session = b.open()
    ids, mask = ids_of(batch, 7), attention_mask(kind, batch, 7)
    positions = default_positions(mask, 7)
    first = session.run({"input_ids": ids[:, :4], "attention_mask": mask[:, :4], "position_ids": positions[:, :4]})
    pasts = {k.replace("present.", "past_key_values."): v for k, v in first.items() if k.startswith("present.")}
    rest = {"input_ids": ids[:, 4:], "attention_mask": mask, "position_ids": positions[:, 4:], **pasts}
    wanted = b.logits(ids, mask, positions)[:, 4:]
    close(session.run(rest)["logits"][mask[:, 4:] == 1], wanted[mask[:, 4:] == 1])


# -- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GENERATING)
def test_prefill_and_64_steps_equal_one_forward(built: Callable[[str], Built], name: str) -> None:
    b = built(name)
    ids = ids_of(1, 70)
    wanted = b.logits(ids)[0]
    session = b.open()
    close(session.prefill(ids[:, :6], [6])[0], wanted[5])
    for i in range(6, 70):
        close(session.step(ids[:, i])[0], wanted[i], i)
    assert session.lengths.tolist() == [70] and session.capacity >= 70
    assert set(session._loaded) == {"model.onnx"}
    assert isinstance(session._cache, Compact if session.contract.lengths else Padded)


@pytest.mark.parametrize("name", GENERATING)
def test_ragged_rows_equal_each_row_alone(built: Callable[[str], Built], name: str) -> None:
    b = built(name)
    ids, lengths = ids_of(3, 9), np.array([9, 1, 4])
    rows = [ids[i, :n].tolist() for i, n in enumerate(lengths)]
    session = b.open()
    logits = session.prefill(ids, lengths)
    for step in range(12):
        for i, row in enumerate(rows):
            close(logits[i], b.last(row), (step, i))
        tokens = logits.argmax(axis=1)
        for row, token in zip(rows, tokens, strict=True):
            row.append(int(token))
        logits = session.step(tokens)
    assert session.lengths.tolist() == [21, 13, 16]


def test_a_recurrent_state_cannot_be_cut(built: Callable[[str], Built]) -> None:
    b = built("lstm_lm")
    session = b.open()
    ids = ids_of(2, 6)
    session.prefill(ids[:, :3], [3, 3])
    session.truncate([3, 3])
    with pytest.raises(
        RuntimeInputError, match=r"past_state.0.[hc] is one state and no past: the 3 tokens of row 0 stay"
    ):
        session.truncate([2, 3])
    close(session.append(ids[:, 3:]), b.logits(ids)[:, -1])
    assert session.contract.positions == 0 and session.contract.kind == "decoder"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CACHED)
def test_truncate_and_append(built: Callable[[str], Built], name: str, batch: int) -> None:
    """Rows are cut to different lengths and get other tokens: what was cut leaves no trace."""
    b = built(name)
    ids, more = ids_of(batch, 8), ids_of(batch, 5, seed=1)
    session = b.open()
    session.prefill(ids, np.full(batch, 8))
    session.step(ids[:, 0])
    session.step(ids[:, 1])
    cut = np.array([8, 9, 8] if name == "window" else [6, 3, 9])[:batch]  # A window of 3 keeps 2 of a prompt.
    session.truncate(cut)
    assert session.lengths.tolist() == cut.tolist()
    logits = session.append(more)
    for i in range(batch):
        row = [*ids[i].tolist(), int(ids[i, 0]), int(ids[i, 1])][: cut[i]] + more[i].tolist()
        close(logits[i], b.last(row), i)
    assert session.lengths.tolist() == (cut + 5).tolist()


def test_a_session_is_used_again_for_other_batches(built: Callable[[str], Built]) -> None:
    b = built("llama")
    session = b.open()
    for batch, length in ((3, 5), (1, 20), (3, 2)):
        ids = ids_of(batch, length, seed=batch)
        close(session.prefill(ids, np.full(batch, length)), b.logits(ids)[:, -1])
        close(session.step(ids[:, 0]), b.logits(np.concatenate([ids, ids[:, :1]], axis=1))[:, -1])
        session.reset()
        assert session.lengths.tolist() == []


def test_logits_are_the_callers_to_keep(built: Callable[[str], Built]) -> None:
    session = built("llama").open()
    first = session.prefill(ids_of(1, 3), [3])
    second = session.step([1])
    kept = first.copy(), second.copy()
    session.step([2])
    session.step([3])
    np.testing.assert_array_equal(first, kept[0])
    np.testing.assert_array_equal(second, kept[1])
    assert first.dtype == np.float32 and first.shape == (1, VOCAB)


@pytest.mark.parametrize("name", ["llama", "bias"])
def test_capacity(built: Callable[[str], Built], name: str) -> None:
    """Buffers double up to the model's positions; beyond, one error with the numbers, and nothing is lost."""
    b = built(name)
    session = b.open(capacity=4)
    ids = ids_of(1, POSITIONS)
    session.prefill(ids[:, : POSITIONS - 1], [POSITIONS - 1])
    close(session.step(ids[:, -1])[0], b.last(ids[0].tolist()))
    assert session.capacity == POSITIONS
    with pytest.raises(RuntimeInputError, match=f"{POSITIONS + 1} tokens do not fit.* at most {POSITIONS} positions"):
        session.step([1])
    assert session.lengths.tolist() == [POSITIONS]
    session.truncate([POSITIONS - 1])
    close(session.step(ids[:, -1])[0], b.last(ids[0].tolist()))
    with pytest.raises(RuntimeInputError, match="81 tokens do not fit"):
        session.prefill(np.zeros((1, 81), np.int64), [81])
    with pytest.raises(RuntimeInputError, match="do not fit"):
        session.run({"input_ids": np.zeros((1, 81), np.int64)})


def test_rows_that_were_long_do_not_make_other_rows_large(built: Callable[[str], Built]) -> None:
    """Eight short rows after a long one take the room of eight short rows."""
    b = built("llama")
    session, ids = b.open(capacity=8), ids_of(8, 70)
    session.prefill(ids[:1], [70])
    assert session.capacity >= 70
    session.prefill(ids[:, :6], np.full(8, 6))
    assert session.capacity == 8
    for i in range(6, 20):
        logits = session.step(ids[:, i])
    for row in range(8):
        close(logits[row], b.last(ids[row, :20].tolist()), row)


def unbounded(b: Built) -> Session:
    """A session that lets ids beyond the vocabulary through, so that the runtime fails in the middle of a call."""
    session = b.open()
    session.contract = replace(session.contract, bounds={})
    return session


@pytest.mark.parametrize("name", ["llama", "bias", "lstm_lm"])
def test_a_prompt_that_fails_is_not_gone_on_from(built: Callable[[str], Built], name: str) -> None:
    session = unbounded(built(name))
    session.prefill([[1, 2]], [2])
    with pytest.raises(RuntimeInputError, match=r"ONNX Runtime: (?s:.)*everything read is forgotten"):
        session.prefill([[1, VOCAB]], [2])
    with pytest.raises(RuntimeInputError, match="call `prefill` first"):
        session.step([1])
    close(session.prefill([[1, 2]], [2])[0], built(name).last([1, 2]))


def test_rows_that_do_not_all_fit_take_nothing(built: Callable[[str], Built]) -> None:
    session = built("llama").open()
    session.prefill(ids_of(2, POSITIONS - 2), [POSITIONS - 2, 3])
    with pytest.raises(RuntimeInputError, match="81 tokens do not fit"):
        session.append(ids_of(2, 3))
    assert session.lengths.tolist() == [POSITIONS - 2, 3]


def test_tuned_sessions_give_the_same(built: Callable[[str], Built]) -> None:
    b = built("llama")
    ids = ids_of(2, 30)
    close(b.open(tune=True, threads=None).prefill(ids, [30, 12]), b.open().prefill(ids, [30, 12]))
