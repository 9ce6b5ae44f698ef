"""Sessions over graphs made by hand: each growth of a slot alone and all of them mixed, against full forwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monograph.backends.onnxruntime import held
from monograph.ir.errors import RuntimeInputError
from slot_nets import FORMS, HEADS, WIDTH, WINDOW, Array, Made, Reader


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    folder, known = tmp_path_factory.mktemp("slots"), dict[str, Made]()

    def get(parts: str, *, lengths: bool, **settings: Any) -> Made:
        key = f"{parts} {lengths} {settings}"
        if key not in known:
            known[key] = Made(parts, folder / str(len(known)), lengths=lengths, **settings)
        return known[key]

    return get


PARTS = (
    "append", "window", "replace", "once append", "append window replace", "append window append2 window2",
    "once append window replace along fixed", "window replace nomask", "append along nomask",
)  # fmt: skip


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("lengths", FORMS)
@pytest.mark.parametrize("parts", PARTS)
def test_prompts_steps_and_ragged_chunks(made: Callable[..., Made], parts: str, lengths: bool, batch: int) -> None:
    """Prompts longer and shorter than the window, three windows of steps, even and ragged chunks, capacity grown."""
    if parts == "once append" and lengths is False:
        parts = "once window"
    m = made(parts, lengths=lengths)
    reader = Reader(m, m.open(), batch)
    reader.prefill([9, 1, 4][:batch])
    for _ in range(3 * WINDOW):
        reader.step()
    reader.append([4] * batch)
    reader.append([1, 6, 3][:batch])
    reader.step()
    reader.append([3, 3, 1][:batch])
    reader.step()
    assert reader.session.state_bytes > 0
    assert set(reader.session._loaded) == {m.contract.lengths or m.contract.masked} | (
        {"encoder.onnx"} if "once" in parts else set()
    )
    assert reader.session.capacity >= max(len(r) for r in reader.rows)


@pytest.mark.parametrize("lengths", FORMS)
def test_a_session_is_used_again(made: Callable[..., Made], lengths: bool) -> None:
    """Other batch sizes, the same again, after a reset: nothing of the batch before is left."""
    m = made("append window replace along fixed", lengths=lengths)
    session = m.open()
    owners = {id(session.owner): session.owner}
    for seed, counts in enumerate(([5], [2, 7, 3], [6, 1, 1], [4, 2, 9], [3])):
        reader = Reader(m, session, len(counts), seed)
        reader.prefill(counts)
        reader.step()
        reader.step()
        owners[id(session.owner)] = session.owner
        if seed == 2:
            session.reset()
            assert session.lengths.tolist() == []
            with pytest.raises(RuntimeInputError, match="call `prefill` first"):
                session.step([1, 1, 1])
    assert len(owners) == 6


@pytest.mark.parametrize("lengths", FORMS)
def test_long_windows_are_moved_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lengths: bool) -> None:
    """More tokens than a window's buffer has places, one by one and in chunks that do not fit at once."""
    monkeypatch.setattr(held, "SLACK", 6)
    m = Made("window replace window2", tmp_path / "out", lengths=lengths, limit=0)
    reader = Reader(m, m.open(), 2)
    reader.prefill([3, 8])
    reader.append([14, 9])
    for _ in range(15):
        reader.step()
    reader.append([13, 2])
    token = HEADS * 8 * 4 * 4 * 2  # Keys and values of two layers and two rows.
    states = 2 * WIDTH * 4
    places = (WINDOW - 1 + 6) if lengths else WINDOW - 1
    assert reader.session.state_bytes == places * token + (2 * states if lengths else states)
    assert reader.session.capacity > 10**9


# -- forgetting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", FORMS)
def test_truncate_what_only_appends(made: Callable[..., Made], lengths: bool) -> None:
    reader = Reader(
        made("append along nomask", lengths=lengths), made("append along nomask", lengths=lengths).open(), 3
    )
    reader.prefill([9, 3, 5])
    reader.step()
    for lengths_now in ([4, 4, 6], [4, 1, 2], [4, 1, 2]):
        reader.truncate(lengths_now)
        reader.step()
        reader.append([2, 1, 3])
        reader.truncate(lengths_now)
    reader.append([5, 5, 5])


@pytest.mark.parametrize("lengths", FORMS)
def test_truncate_windows(made: Callable[..., Made], lengths: bool) -> None:
    """As far as what a window has dropped is not needed: 4 of the past count."""
    m = made("append window append2 window2", lengths=lengths)
    reader = Reader(m, m.open(), 2)
    reader.prefill([9, 4])
    if lengths:  # A buffer has more places than count, and cuts within them are free.
        for _ in range(6):
            reader.step()
        reader.truncate([10, 4])
        reader.append([2, 3])
        reader.truncate([9, 4])
    reader.truncate([9, 3])
    reader.step()
    kept, now = ([9, 3], 10)
    with pytest.raises(
        RuntimeInputError, match=rf"past_key_values.1.key holds the newest \d of the {now} tokens of row 0"
    ):
        reader.session.truncate([8, kept[1]])
    assert reader.session.lengths.tolist() == [10, 4], "a cut that is refused changes nothing"
    reader.step()


@pytest.mark.parametrize("lengths", FORMS)
def test_states_are_not_cut(made: Callable[..., Made], lengths: bool) -> None:
    m = made("append window replace", lengths=lengths)
    reader = Reader(m, m.open(), 2)
    reader.prefill([2, 3])
    reader.truncate([2, 3])
    with pytest.raises(RuntimeInputError, match=r"past_state.0.h is one state and no past: the 3 tokens of row 1 stay"):
        reader.session.truncate([2, 2])
    reader.step()


# -- rows that stand no padding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", ["append window", "replace append", "once append replace fixed"])
def test_rows_are_alone_where_the_contract_says_so(made: Callable[..., Made], parts: str) -> None:
    m = made(parts, lengths=False, alone="it counts columns")
    reader = Reader(m, m.open(), 3)
    session, graph = reader.session, reader.session.graph(m.contract.masked)
    seen: list[Array] = []
    run = session.memory.run

    def watched(loaded: Any, feeds: Any) -> Any:
        if loaded is graph:
            seen.append(session.memory.download(feeds[m.stream.mask]))
        return run(loaded, feeds)

    session.memory.run = watched  # type: ignore[method-assign]
    reader.prefill([7, 2, 4])
    reader.step()
    reader.append([2, 7, 5])
    reader.step()
    assert [mask.shape[0] for mask in seen] == [1] * 9 + [3], "three times each row alone, then all are of one length"
    assert all(mask.all() for mask in seen), "no row sees padding"
