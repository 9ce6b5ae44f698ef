"""Prompts that begin alike: what was kept gives what reading again would, within its bytes, and never across keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from monograph.backends.onnxruntime import held
from monograph.backends.onnxruntime.prefix import NODE_BYTES, Prefixes, key_of
from monograph.backends.onnxruntime.rows import Rows, rows_of
from slot_nets import FORMS, VOCAB, Made, close

PARTS = ["append", "window", "append window", "replace", "append replace window"]


def read(rows: Rows, prefixes: Prefixes, prompt: list[int], key: str = "") -> tuple[np.ndarray, int, int]:
    """(logits after a prompt, tokens that were known, row), as a scheduler reads it."""
    row = rows.join()
    parting, known = prefixes.parting(key, prompt), prefixes.restore(row, key, prompt)
    start = known
    for stop in sorted({parting, len(prompt)} - {0}):
        if stop > start:
            logits = rows.read(row, prompt[start:stop])
            prefixes.save(row, key, prompt[:stop], state=stop == parting)
            start = stop
    return logits, known, row


@pytest.mark.parametrize("lengths", FORMS)
@pytest.mark.parametrize("parts", PARTS)
def test_prompts_with_a_common_beginning_say_what_they_say_alone(
    parts: str, lengths: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "SLACK", 3)
    made = Made(parts, tmp_path / "net", lengths=lengths)
    rows = rows_of(made.open(), 3)
    prefixes = Prefixes(rows, 1 << 20, block=4)
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, VOCAB, n).tolist() for n in (22, 9))
    known: list[int] = []
    for turn in range(12):
        prompt = (first, second)[turn % 2] + rng.integers(0, VOCAB, 1 + turn).tolist()
        logits, n, row = read(rows, prefixes, prompt)
        known.append(n)
        close(logits, made.full(np.array(prompt))[0, -1], (turn, n))
        for _ in range(3):
            prompt.append(int(rng.integers(VOCAB)))
            close(rows.step([row], prompt[-1:])[0], made.full(np.array(prompt))[0, -1], turn)
        prefixes.save(row, "", prompt, state=True)
        rows.leave(row)
        go_on = [*prompt, 3, 4]
        logits, n, row = read(rows, prefixes, go_on)
        assert n >= len(prompt) // 4 * 4, "a row goes on from what another one ended with"
        close(logits, made.full(np.array(go_on))[0, -1], turn)
        rows.leave(row)
    assert known[:2] == [0, 0] and min(known[4::2]) >= 20 and min(known[5::2]) >= 8, known
    assert prefixes.hits + prefixes.misses == 24 and prefixes.tokens >= sum(known)


def test_the_limit_holds_and_what_was_used_last_stays(tmp_path: Path) -> None:
    rows = rows_of(Made("append", tmp_path / "net", lengths=True).open(), 1)
    block = 2 * 2 * 4 * 8 * 4 + NODE_BYTES  # keys and values of 2 heads, 4 tokens, 8 floats
    prefixes = Prefixes(rows, 6 * block, block=4)
    rng = np.random.default_rng(1)
    kept = rng.integers(0, VOCAB, 13).tolist()
    for _ in range(20):
        _, _, row = read(rows, prefixes, kept)
        rows.leave(row)
        _, _, row = read(rows, prefixes, rng.integers(0, VOCAB, 13).tolist())
        rows.leave(row)
        assert prefixes.bytes <= prefixes.limit
        assert prefixes.bytes == sum(b.bytes for b in prefixes.recent)
    assert prefixes.hits >= 19 and prefixes.bytes == 6 * block
    prefixes.limit = 0
    prefixes.shrink()
    assert prefixes.bytes == 0 and not prefixes.roots


def test_other_inputs_and_adapters_are_other_beginnings(tmp_path: Path) -> None:
    rows = rows_of(Made("fixed append", tmp_path / "net", lengths=True).open(), 2)
    prefixes = Prefixes(rows, 1 << 20, block=4)
    prompt = list(range(12))
    styles = [{"style": np.full((1, 16), x, np.float32)} for x in (0, 1)]
    assert len({key_of(s) for s in [*styles, {}, {"adapter": np.array([1])}, {"adapter": np.array([2])}]}) == 5
    row = rows.join(styles[0])
    rows.read(row, prompt)
    prefixes.save(row, key_of(styles[0]), prompt, state=True)
    other = rows.join(styles[1])
    assert prefixes.restore(other, key_of(styles[1]), prompt) == 0
    rows.leave(other)
    again = rows.join(styles[0])
    assert prefixes.restore(again, key_of({"style": styles[0]["style"].copy()}), prompt) == 8


def test_one_token_is_always_left_to_read_and_nothing_is_kept_without_bytes(tmp_path: Path) -> None:
    rows = rows_of(Made("append", tmp_path / "net", lengths=True).open(), 1)
    for limit, known in ((1 << 20, 4), (0, 0)):
        prefixes = Prefixes(rows, limit, block=4)
        for expected in (0, known):
            _, n, row = read(rows, prefixes, list(range(8)))
            assert n == expected
            rows.leave(row)
        assert bool(prefixes.bytes) == bool(limit)
