"""Many requests over one session: each gets what it gets alone, whatever happens to the others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.backends.onnxruntime import Session
from monograph.backends.onnxruntime.runtime import Binding
from monograph.inference.errors import ClosedError, DeadlineError, GenerationError, QueueFullError, SessionError
from monograph.inference.generate import Settings, generate
from monograph.inference.scheduler import Gauges, Scheduler
from monograph.ir.errors import RuntimeInputError
from slot_nets import FORMS, VOCAB, Made

PARTS = ["append", "window", "replace", "append replace window"]
PLAIN = Settings(max_new_tokens=6)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made("append", tmp_path_factory.mktemp("made") / "net", lengths=True)


def prompts(count: int, seed: int = 0, longest: int = 30) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, int(rng.integers(1, longest + 1))).tolist() for _ in range(count)]


def alone(session: Session, prompt: list[int], **settings: Any) -> list[int]:
    return generate(session, None, [prompt], **settings)[0].ids


def wait(until: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def gate(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No row takes a step until it is set: what is submitted runs, and has not ended."""
    opened, rows = threading.Event(), scheduler._batch.rows
    step = rows.step_greedy
    monkeypatch.setattr(rows, "step_greedy", lambda *given, **named: (opened.wait(20), step(*given, **named))[1])
    return opened


@pytest.mark.parametrize("lengths", FORMS)
@pytest.mark.parametrize("parts", PARTS)
def test_rows_that_join_and_leave_get_the_ids_of_plain_greedy(parts: str, lengths: bool, tmp_path: Path) -> None:
    session = Made(parts, tmp_path / "net", lengths=lengths).open()
    given = prompts(24)
    counts = [1 + i % 9 for i in range(24)]
    wanted = [alone(session, p, max_new_tokens=n) for p, n in zip(given, counts, strict=True)]
    with Scheduler(session, None, rows=4, chunk=7) as scheduler:
        for _ in range(2):  # The second time most prompts are known.
            requests = [scheduler.submit(p, Settings(max_new_tokens=n)) for p, n in zip(given, counts, strict=True)]
            assert [r.result(30).ids for r in requests] == wanted
        found = scheduler.gauges()
    assert found.tokens_out == 2 * sum(counts) and found.tokens_in == 2 * sum(map(len, given))
    assert (found.queued, found.running, found.rows, found.ended) == (0, 0, 4, {"length": 48})
    assert found.alone == "" and bool(found.whole) == (not lengths or parts != "append")


def test_sampled_rows_draw_what_they_draw_alone(made: Made) -> None:
    session = made.open()
    how = {"max_new_tokens": 8, "temperature": 0.9, "top_k": 12, "top_p": 0.95, "repetition_penalty": 1.2}
    given = prompts(12, 1)
    wanted = [alone(session, p, seed=i, **how) for i, p in enumerate(given)]
    with Scheduler(session, None, rows=3) as scheduler:
        requests = [scheduler.submit(p, Settings(seed=i, **how)) for i, p in enumerate(given)]
        assert [r.result(30).ids for r in requests] == wanted


def test_eight_threads_submit_cancel_and_read(made: Made) -> None:
    session = made.open()
    given = prompts(40, 2)
    wanted = [alone(session, p, max_new_tokens=10) for p in given]
    wrong: list[Any] = []

    def client(number: int, scheduler: Scheduler) -> None:
        rng = np.random.default_rng(number)
        for _ in range(25):
            i = int(rng.integers(len(given)))
            request = scheduler.submit(given[i], Settings(max_new_tokens=10))
            stop = int(rng.integers(0, 20))
            ids: list[int] = []
            for piece in request:
                ids += piece.ids
                if len(ids) > stop:
                    request.cancel()
            found = request.result(0)
            whole = found.reason != "cancelled"
            if found.ids != ids or ids != wanted[i][: len(ids)] or (whole and ids != wanted[i]):
                wrong.append((i, ids, found))

    with Scheduler(session, None, rows=4) as scheduler:
        threads = [threading.Thread(target=client, args=(n, scheduler)) for n in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        gauges = scheduler.gauges()
    assert not wrong
    assert sum(gauges.ended.values()) == 200 and gauges.ended["cancelled"] > 0
    assert gauges.running == gauges.queued == 0


def test_a_thousand_tiny_requests_leave_no_row_behind(made: Made) -> None:
    with Scheduler(made.open(), None, rows=4, queue=1000) as scheduler:
        requests = [scheduler.submit([1 + i % 7], Settings(max_new_tokens=1 + i % 3)) for i in range(1000)]
        found = [r.result(60) for r in requests]
        batch = scheduler._batch
        assert [len(f.ids) for f in found] == [1 + i % 3 for i in range(1000)]
        assert not batch.rows.of and not batch.running and all(not p.places for p in batch.rows.pools.values())
        assert scheduler.gauges().ended == {"length": 1000}


def test_the_queue_is_fair_and_full_at_its_limit(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scheduler(made.open(), None, rows=1, queue=3) as scheduler:
        opened = gate(scheduler, monkeypatch)
        scheduler.submit([1], Settings(max_new_tokens=50))
        wait(lambda: scheduler._batch.running != [])
        waiting = [scheduler.submit([2], PLAIN) for _ in range(3)]
        with pytest.raises(QueueFullError, match="3 requests wait"):
            scheduler.submit([3], PLAIN)
        assert scheduler.gauges().queued == 3
        opened.set()
        for r in waiting:
            r.result(20)
        times = [r.ended for r in waiting]
        assert times == sorted(times)


def test_a_cancelled_request_frees_its_row_and_keeps_what_came(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scheduler(made.open(), None, rows=1) as scheduler:
        opened = gate(scheduler, monkeypatch)
        long = scheduler.submit([1, 2], Settings(max_new_tokens=50))
        waiting = scheduler.submit([3], Settings(max_new_tokens=50))
        long.listen(lambda: time.sleep(0.005))
        opened.set()
        next(iter(long))
        long.cancel()
        waiting.cancel()
        found = long.result(20)
        assert found.reason == "cancelled" and 1 <= len(found.ids) < 50
        assert waiting.result(20).reason == "cancelled" and waiting.result().ids == []
        assert scheduler.submit([4], PLAIN).result(20).reason == "length"
        assert scheduler.gauges().ended == {"cancelled": 2, "length": 1}


def test_a_deadline_ends_what_runs_and_what_waits(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scheduler(made.open(), None, rows=1) as scheduler:
        opened = gate(scheduler, monkeypatch)
        slow = scheduler.submit([1], Settings(max_new_tokens=50), timeout=0.05)
        slow.listen(lambda: time.sleep(0.01))
        opened.set()
        waiting = scheduler.submit([2], PLAIN, timeout=0.02)
        for request in (slow, waiting):
            with pytest.raises(DeadlineError, match="has not ended"):
                request.result(20)
        assert scheduler.submit([1], PLAIN, timeout=30).result(20).reason == "length"


def test_what_can_never_be_served_is_refused_at_once(made: Made) -> None:
    with Scheduler(made.open(), None, rows=1) as scheduler:
        bad: list[tuple[list[int], dict[str, Any], dict[str, Any], str]] = [
            ([], {}, {}, "no tokens"),
            ([1, VOCAB], {}, {}, f"the id {VOCAB}"),
            ([-1], {}, {}, "the id -1"),
            ([1] * 60, {}, {}, "60 positions"),
            ([1], {"max_new_tokens": 60}, {}, "60 positions"),
            ([1], {"stop": "x"}, {}, "need a tokenizer"),
            ([1], {"eos": "</s>"}, {}, "needs a tokenizer"),
            ([1], {}, {"logprobs": -1}, "logprobs is -1"),
        ]
        for prompt, settings, more, message in bad:
            with pytest.raises(RuntimeInputError, match=message):
                scheduler.submit(prompt, Settings(**{"max_new_tokens": 6, **settings}), **more)
        request = scheduler.submit([1], PLAIN, inputs={"nothing": np.zeros(1)})
        with pytest.raises(RuntimeInputError, match="nothing"):
            request.result(20)
        assert scheduler.submit([1], PLAIN).result(20).ids


def test_what_comes_with_every_token_cannot_be_served_and_what_stays_for_a_row_can(tmp_path: Path) -> None:
    session = Made("along append", tmp_path / "along", lengths=True).open()
    sound = pytest.raises(RuntimeInputError, match="the model takes sound with every token")
    with Scheduler(session, None) as scheduler, sound:
        scheduler.submit([1], PLAIN)
    session = Made("fixed append", tmp_path / "fixed", lengths=True).open()
    styles = [np.full((1, 16), x, np.float32) for x in (0, 3)]
    with Scheduler(session, None, rows=2) as scheduler:
        for _ in range(2):
            requests = [scheduler.submit([1] * 40, PLAIN, inputs={"style": s}) for s in styles]
            found = [r.result(20).ids for r in requests]
            assert found[0] != found[1]
        assert [r.cached for r in requests] == [32, 32]
        request = scheduler.submit([1], PLAIN)
        with pytest.raises(RuntimeInputError, match="style"):
            request.result(20)


def test_drain_serves_what_there_is_and_close_ends_it(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler(made.open(), None, rows=1)
    requests = [scheduler.submit([1], PLAIN) for _ in range(4)]
    assert scheduler.drain(20)
    assert [r.result(0).reason for r in requests] == ["length"] * 4
    with pytest.raises(ClosedError, match="takes no more"):
        scheduler.submit([1], PLAIN)
    scheduler.close()
    scheduler = Scheduler(made.open(), None, rows=1)
    opened = gate(scheduler, monkeypatch)
    slow, waiting = scheduler.submit([1], Settings(max_new_tokens=50)), scheduler.submit([1], PLAIN)
    slow.listen(lambda: time.sleep(0.01))
    opened.set()
    assert not scheduler.drain(0.01)
    scheduler.close()
    scheduler.close()
    for request in (slow, waiting):
        with pytest.raises(ClosedError, match="was closed before"):
            request.result(1)


def test_a_failed_session_fails_what_runs_and_serves_what_waits(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    session = made.open()
    run, broken = Binding.run, threading.Event()

    def failing(self: Binding) -> None:
        if broken.is_set():
            raise RuntimeError("the device is gone")
        run(self)

    monkeypatch.setattr(Binding, "run", failing)
    reload = session.reload
    monkeypatch.setattr(session, "reload", lambda: (broken.clear(), reload()))
    wanted = alone(session, [5], max_new_tokens=6)
    with Scheduler(session, None, rows=2) as scheduler:
        opened = gate(scheduler, monkeypatch)
        running = [scheduler.submit([i], Settings(max_new_tokens=50)) for i in (1, 2)]
        running[0].listen(lambda: time.sleep(0.005))
        opened.set()
        wait(lambda: all(r.first_token for r in running))
        waiting = scheduler.submit([5], PLAIN)
        broken.set()
        for request in running:
            with pytest.raises(SessionError, match="the device is gone"):
                request.result(20)
        assert waiting.result(20).ids == wanted
        assert scheduler.gauges().ended == {"SessionError": 2, "length": 1}
        assert scheduler.gauges().tokens_out > 6


def test_the_error_of_one_row_does_not_hurt_the_others(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    session = made.open()
    wanted = alone(session, [1], max_new_tokens=30)
    with Scheduler(session, None, rows=2) as scheduler:
        rows = scheduler._batch.rows
        poison = threading.Event()

        def cursed(step: Callable[..., Any]) -> Callable[..., Any]:
            def failing(which: Any, tokens: Any, inputs: Any = None) -> Any:
                if poison.is_set() and 1 in which:
                    raise RuntimeInputError("row 1 is cursed")
                return step(which, tokens, inputs)

            return failing

        for name in ("step", "step_greedy"):
            monkeypatch.setattr(rows, name, cursed(getattr(rows, name)))
        opened = gate(scheduler, monkeypatch)
        good, bad = (scheduler.submit([i], Settings(max_new_tokens=30)) for i in (1, 2))
        good.listen(lambda: time.sleep(0.002))
        opened.set()
        wait(lambda: bad.first_token is not None)
        poison.set()
        with pytest.raises(SessionError, match="cursed"):
            bad.result(20)
        assert good.result(20).ids == wanted


def test_a_constraint_that_breaks_ends_its_own_request_only(made: Made) -> None:
    class Broken:
        done = False

        def __init__(self, where: str) -> None:
            self.where, self.count = where, 0

        def allowed(self) -> Any:
            if self.where == "allowed" and self.count == 3:
                raise KeyError("a bug")
            return np.ones(VOCAB, bool)

        def accept(self, token: int) -> None:
            self.count += 1
            if self.where == "accept" and self.count == 3:
                raise ValueError("another bug")

    session = made.open()
    wanted = alone(session, [1], max_new_tokens=20)
    with Scheduler(session, None, rows=3) as scheduler:
        good = scheduler.submit([1], Settings(max_new_tokens=20))
        bad = [scheduler.submit([1], PLAIN, constraint=Broken(w)) for w in ("allowed", "accept")]
        for request in bad:
            with pytest.raises(GenerationError, match="bug"):
                request.result(20)
        assert good.result(20).ids == wanted
        assert scheduler.gauges().running == 0


def test_prompts_are_read_in_chunks_between_steps(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scheduler(made.open(), None, rows=2, chunk=4) as scheduler:
        rows, calls = scheduler._batch.rows, list[str]()
        read, step = rows.read, rows.step_greedy
        monkeypatch.setattr(rows, "read", lambda r, t, **k: (calls.append(f"read {len(t)}"), read(r, t, **k))[1])

        def slowly(r: Any, t: Any, **k: Any) -> Any:
            calls.append(f"step {len(r)}")
            time.sleep(0.01)  # The first one still runs when the other is read.
            return step(r, t, **k)

        monkeypatch.setattr(rows, "step_greedy", slowly)
        first = scheduler.submit([1], Settings(max_new_tokens=59))
        next(iter(first))
        scheduler.submit(list(range(18)), Settings(max_new_tokens=2)).result(20)
        first.cancel()
    start = calls.index("read 4")
    assert [c for c in calls[start : start + 10] if c != "step 1"] == ["read 4"] * 4 + ["read 2", "step 2"]
    assert calls[start + 1] == calls[start + 3] == "step 1", "a running row waits for one chunk at most"


def test_a_coroutine_reads_pieces(made: Made) -> None:
    session = made.open()
    wanted = [alone(session, p, max_new_tokens=8) for p in prompts(6, 3)]

    async def client(scheduler: Scheduler, prompt: list[int]) -> list[int]:
        request = scheduler.submit(prompt, Settings(max_new_tokens=8))
        return [i async for piece in request for i in piece.ids]

    async def main(scheduler: Scheduler) -> list[list[int]]:
        return await asyncio.gather(*(client(scheduler, p) for p in prompts(6, 3)))

    with Scheduler(session, None, rows=3) as scheduler:
        assert asyncio.run(main(scheduler)) == wanted


def test_a_listener_whose_loop_is_closed_hurts_nobody(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    session = made.open()
    wanted = alone(session, [1], max_new_tokens=30)
    calls: list[int] = []

    def broken() -> None:
        calls.append(1)
        if len(calls) > 1:
            raise KeyError("a bug of the listener")

    with Scheduler(session, None, rows=3) as scheduler:
        loop = asyncio.new_event_loop()
        opened = gate(scheduler, monkeypatch)
        deaf, failing, good = (scheduler.submit([1], Settings(max_new_tokens=30)) for _ in range(3))
        deaf.listen(lambda: loop.call_soon_threadsafe(list))
        loop.close()
        failing.listen(broken)
        opened.set()
        assert [r.result(20).ids for r in (deaf, failing, good)] == [wanted] * 3
        assert len(calls) == 2 and scheduler.submit([1], PLAIN).result(20).ids == wanted[:6]


def test_settings_out_of_range_are_told(made: Made) -> None:
    for name in ("rows", "queue", "chunk"):
        with pytest.raises(RuntimeInputError, match=f"{name} is 0, expected at least 1"):
            Scheduler(made.open(), None, **{name: 0})
    with pytest.raises(RuntimeInputError, match="prefix_bytes is -1"):
        Scheduler(made.open(), None, prefix_bytes=-1)


def test_gauges_say_how_full_it_is(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scheduler(made.open(), None, rows=2, prefix_bytes=0) as scheduler:
        opened = gate(scheduler, monkeypatch)
        request = scheduler.submit([1] * 29, Settings(max_new_tokens=31))
        wait(lambda: scheduler.gauges().cache_used > 0)
        found: Gauges = scheduler.gauges()
        assert found.running == 1 and found.cache_used == pytest.approx(29 / 120, abs=1 / 12)
        opened.set()
        request.result(20)
        assert scheduler.gauges().prefix_bytes == 0
