"""One engine, several threads: every generation has a state of its own; streams may be read in turns."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monograph.inference.engine import Engine
from monograph.inference.generate import Settings
from monograph.ir.errors import RuntimeInputError
from slot_nets import FORMS, VOCAB, Made
from test_engine import llama, made, tokenizer  # noqa: F401


@pytest.mark.parametrize("lengths", FORMS)
@pytest.mark.parametrize("parts", ["append", "replace window", "once append"])
def test_eight_threads_generate_what_one_does(parts: str, lengths: bool, tmp_path: Path) -> None:
    net = Made(parts, tmp_path / "net", lengths=lengths)
    rng = np.random.default_rng(0)
    rows = [[rng.integers(0, VOCAB, int(n)).tolist() for n in rng.integers(1, 20, 2)] for _ in range(16)]
    with Engine(net.open()) as engine:

        def inputs(seed: int) -> dict[str, Any] | None:
            frames = np.random.default_rng(seed).standard_normal((2, 4, 4)).astype(np.float32)
            return {"frames": frames} if "once" in parts else None

        def generate(i: int) -> list[list[int]]:
            return [g.ids for g in engine.generate(rows[i], inputs=inputs(i), max_new_tokens=12)]

        wanted = [generate(i) for i in range(16)]
        found: dict[tuple[int, int], list[list[int]]] = {}

        def client(number: int) -> None:
            for i in np.random.default_rng(number).permutation(16).tolist():
                found[number, i] = generate(i)

        threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(found) == 128
        assert all(ids == wanted[i] for (_, i), ids in found.items())


def test_streams_are_read_in_turns(llama: Any, tmp_path: Path) -> None:  # noqa: F811
    with made(llama, tmp_path / "llama") as engine:
        wanted = [engine.generate(p, max_new_tokens=20, eos=()).text for p in ("the cat", "the dog", "a")]
        streams = [engine.stream(p, max_new_tokens=20, eos=()) for p in ("the cat", "the dog", "a")]
        texts = ["", "", ""]
        for _ in range(40):
            for i, s in enumerate(streams):
                texts[i] += next(s, "")
        assert texts == wanted
        with pytest.raises(RuntimeInputError, match="max_new_tokens is 0"):
            engine.stream("a", max_new_tokens=0)


def test_an_engine_has_schedulers(llama: Any, tmp_path: Path) -> None:  # noqa: F811
    with made(llama, tmp_path / "llama") as engine, engine.scheduler(rows=2) as scheduler:
        prompts = [engine.tokenizer.encode(t) for t in ("the cat", "where is the end of", "a")]
        wanted = [engine.generate(p, max_new_tokens=9) for p in prompts]
        requests = [scheduler.submit(p, Settings(max_new_tokens=9)) for p in prompts]
        found = [r.result(30) for r in requests]
        assert [(f.ids, f.text, f.reason) for f in found] == [(w.ids, w.text, w.reason) for w in wanted]
        stopped = engine.generate(prompts[0], max_new_tokens=9, stop=wanted[0].text[2:5])
        request = scheduler.submit(prompts[0], Settings(max_new_tokens=9, stop=wanted[0].text[2:5]))
        assert "".join(p.text for p in request) == stopped.text
        assert request.result(0).reason == stopped.reason == "stop"


def test_a_scheduler_and_threads_share_an_engine(llama: Any, tmp_path: Path) -> None:  # noqa: F811
    with made(llama, tmp_path / "llama") as engine, engine.scheduler(rows=3, chunk=5) as scheduler:
        prompts = [engine.tokenizer.encode(t) for t in ("the cat sat", "where is the end of", "a", "the dog sat on")]
        wanted = [engine.generate(p, max_new_tokens=15, eos=()).ids for p in prompts]
        found: list[tuple[int, list[int]]] = []

        def offline(i: int) -> None:
            found.extend((i, engine.generate(prompts[i], max_new_tokens=15, eos=()).ids) for _ in range(10))

        threads = [threading.Thread(target=offline, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        settings = Settings(max_new_tokens=15, eos=())
        requests = [(i % 4, scheduler.submit(prompts[i % 4], settings)) for i in range(40)]
        found += [(i, r.result(60).ids) for i, r in requests]
        for t in threads:
            t.join()
        assert len(found) == 80 and all(ids == wanted[i] for i, ids in found)
