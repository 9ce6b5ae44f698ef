"""SmolLM2-135M served to many at once: continuous batching and the prefix cache against one request at a time.

Two loads, each run in turn in every way, on one session: requests of mixed lengths, and requests that begin with the
same 512 tokens. Ids are held against plain greedy generation of every prompt alone.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import monograph as mg
import numpy as np
from monograph.assets import fetch
from monograph.backends.onnxruntime import Session
from monograph.backends.onnxruntime import open as open_session
from monograph.console import working
from monograph.frontends.huggingface import save_pretrained
from monograph.inference.generate import Settings, generate
from monograph.inference.scheduler import PREFIX_BYTES, Scheduler
from monograph.ir import DType
from monograph.training.corpus import python_topics
from report import WORK, Row, parser, publish

ROWS, SHARED = 8, 512
WAYS = {"one at a time": (1, 0), "8 rows": (ROWS, 0), "8 rows, prefix cache": (ROWS, PREFIX_BYTES)}
"""(rows, bytes of the prefix cache) by name."""


@dataclass(frozen=True)
class Asked:
    """One request of a load."""

    prompt: list[int]
    new: int


@dataclass(frozen=True)
class Served:
    """What a load came to: seconds in all, the median second of a first token, and the ids of every request."""

    seconds: float
    first: float
    ids: list[list[int]]


def loads(text: list[int]) -> dict[str, list[Asked]]:
    """Requests by the name of their load, from one long text."""
    rng = np.random.default_rng(0)

    def piece(count: int) -> list[int]:
        start = int(rng.integers(SHARED, len(text) - count))
        return text[start : start + count]

    mixed = [Asked(piece(int(rng.integers(16, 257))), int(rng.integers(16, 129))) for _ in range(32)]
    alike = [Asked(text[:SHARED] + piece(int(rng.integers(16, 49))), 16) for _ in range(16)]
    return {
        "32 requests: 16 to 256 tokens, 16 to 128 new": mixed,
        f"16 requests: the same {SHARED} tokens, 16 to 48 of their own, 16 new": alike,
    }


def serve(session: Session, asked: Sequence[Asked], rows: int, prefix_bytes: int) -> Served:
    """All requests at once to a new scheduler."""
    with Scheduler(session, None, rows=rows, prefix_bytes=prefix_bytes) as scheduler:
        start = time.monotonic()
        requests = [scheduler.submit(a.prompt, Settings(max_new_tokens=a.new, eos=())) for a in asked]
        ids = [r.result().ids for r in requests]
        seconds = time.monotonic() - start
    return Served(seconds, statistics.median((r.first_token or start) - start for r in requests), ids)


def measured(name: str, session: Session, load: str, asked: list[Asked], rounds: int) -> list[Row]:
    """One row a way, medians of rounds in which every way has its turn."""
    greedy = [generate(session, None, [a.prompt], max_new_tokens=a.new, eos=())[0].ids for a in asked]
    found: dict[str, list[Served]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, (rows, prefix_bytes) in WAYS.items():
            found[way].append(serve(session, asked, rows, prefix_bytes))
    new = sum(a.new for a in asked)
    alone = statistics.median(s.seconds for s in found["one at a time"])
    result: list[Row] = []
    for way, served in found.items():
        seconds = [s.seconds for s in served]
        middle = statistics.median(seconds)
        equal = sum(got == wanted for s in served for got, wanted in zip(s.ids, greedy, strict=True))
        row: dict[str, Any] = {
            "weights": name,
            "load": load,
            "served": way,
            "seconds": middle,
            "spread (%)": 100 * (max(seconds) - min(seconds)) / middle,
            "new tokens/s": new / middle,
            "speed-up": alone / middle,
            "first token (s)": statistics.median(s.first for s in served),
            "equal to greedy": f"{equal} of {len(asked) * rounds}",
        }
        result.append(row)
    return result


def folders(which: Sequence[str]) -> dict[str, Any]:
    """Built folders by what their weights are."""
    model, source = mg.load(fetch("smollm2")), WORK / "smollm2-f32"
    found = {"4 bits, of the file": WORK / "smollm2-cpu", "float32": WORK / "smollm2-f32-cpu"}
    if not (source / "config.json").exists():
        save_pretrained(model, source, dtype=DType.f32)
    chosen = {k: v for k, v in found.items() if not which or any(k.startswith(w) for w in which)}
    for name, folder in chosen.items():
        mg.build(mg.load(source) if name == "float32" else model, folder)
    return chosen


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--weights", nargs="*", default=(), help="beginnings of the names of weights (all)")
    given = options.parse_args()
    with working("building"):
        built = folders(given.weights)
    model = mg.load(fetch("smollm2"))
    table: list[Row] = []
    for name, folder in built.items():
        session = open_session(folder, threads=given.threads, capacity=1024)
        for load, asked in loads(model.tokenizer.encode(python_topics()[:60_000])).items():
            with working(f"{name}: {load}"):
                table += measured(name, session, load, asked, given.rounds)
    note = (
        f"{given.threads} threads, medians of {given.rounds} rounds in turn; {ROWS} rows, prompts read {256} tokens at "
        "a time between steps. Ids of plain greedy generation, alone; rows that step together add up in another order, "
        "so that a tie within rounding may fall the other way."
    )
    publish("batching", table, note=note, only_print=given.no_publish)


if __name__ == "__main__":
    main()
