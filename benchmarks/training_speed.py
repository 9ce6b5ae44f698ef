"""Training against plain PyTorch and transformers: the same losses, tokens per second, memory, share of the limit.

GPT-2 and Llama of about 10 and 135 million parameters, float32, the same first weights and batches. A process for each
contender; they take a step in turn, so that a noisy minute hits all alike. What has been measured is not measured again
unless asked for: the parts can be run one by one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monograph.console import working
from monograph.ir.cost import at, flops_of
from monograph.machine import cores, measure
from monograph.training.corpus import Corpus, python_topics
from monograph.training.loss import with_loss
from report import WORK, Row, parser, publish
from training_worker import CORPUS, LOADS, WARMUP, model_of

CONTENDERS = {"gpt2": ("plain PyTorch", "transformers", "Monograph"), "llama": ("transformers", "Monograph")}
LOSSES = 100
PARTS = WORK / "training-speed"
WORKER = Path(__file__).parent / "training_worker.py"


@dataclass
class Contender:
    """A worker process and what it has measured so far."""

    name: str
    process: subprocess.Popen[str]
    before: int = 0
    losses: list[float] = field(default_factory=list[float])
    seconds: list[float] = field(default_factory=list[float])
    peak: int = 0

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with {self.process.wait()}")
        return json.loads(line)

    def steps(self, count: int, *, counts: bool = True) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"steps {count}\n")
        self.process.stdin.flush()
        found = self.answer()
        self.losses += found["losses"]
        if counts:
            self.seconds += found["seconds"]
            self.peak = max(self.peak, found["peak"])


@contextlib.contextmanager
def started(family: str, load: str, mode: str, threads: int) -> Iterator[list[Contender]]:
    found: list[Contender] = []
    try:
        for name in CONTENDERS[family]:
            command = [sys.executable, str(WORKER), name, family, load, mode, str(threads)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            found.append(Contender(name, process))
            found[-1].before = found[-1].answer()["before"]
            found[-1].steps(2, counts=False)  # Compiles, and brings memory to what it needs.
        yield found
    finally:
        for contender in found:
            contender.process.kill()
            contender.process.wait()


def compare(family: str, load: str, mode: str, threads: int, rounds: int) -> list[Contender]:
    with started(family, load, mode, threads) as contenders:
        for number in range(rounds):
            # The order turns, so that none always follows the same one.
            for i in range(len(contenders)):
                contenders[(number + i) % len(contenders)].steps(1)
    return contenders


def table(family: str, name: str, mode: str, part: dict[str, Any], peak: float) -> list[Row]:
    """One row a contender; ratios are against the best of the others."""
    load = LOADS[name]
    graph = with_loss(model_of(family, load.size).graph())
    flops = 3 * at(flops_of(graph), {"B": load.batch, "S": load.length})
    found: dict[str, dict[str, Any]] = part["contenders"]
    times = {name: statistics.median(c["seconds"]) for name, c in found.items()}
    needs = {name: c["peak"] - c["before"] for name, c in found.items()}
    others = [name for name in found if name != "Monograph"]
    return [
        {
            "model": f"{family} {load}",
            "mode": mode,
            "trained by": name,
            "tokens/s": load.batch * load.length / times[name],
            "times the best other": min(times[o] for o in others) / times[name],
            "of fp32 limit (%)": 100 * flops / times[name] / peak,
            "peak (MB)": c["peak"] / 1e6,
            "peak / least other": c["peak"] / min(found[o]["peak"] for o in others),
            "of the run (MB)": needs[name] / 1e6,
            "of the run / least other": needs[name] / min(needs[o] for o in others),
            "loss differs from": ", ".join(
                f"{o} by {largest_difference(c['losses'], found[o]['losses']):.1e}" for o in others if o != name
            ),
        }
        for name, c in found.items()
    ]


def largest_difference(losses: list[float], others: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(losses[:LOSSES], others[:LOSSES], strict=False))


def measured(family: str, load: str, mode: str, threads: int, rounds: int, again: bool) -> dict[str, Any]:
    """What the contenders of one part did, from its file if it is of the same measurement."""
    path, case = PARTS / f"{family}-{load}-{mode}.json", LOADS[load]
    kind = {"threads": threads, "rounds": rounds, "batch": case.batch, "length": case.length, "warmup": WARMUP}
    part: dict[str, Any] = {} if again or not path.exists() else json.loads(path.read_text())
    if part.get("kind") == kind:
        return part
    limit = measure(threads)
    found = compare(family, load, mode, threads, rounds)
    keep = ("seconds", "losses", "peak", "before")
    part = {
        "kind": kind,
        "limit": limit.best(measure(threads)).flops,
        "contenders": {c.name: {k: getattr(c, k) for k in keep} for c in found},
    }
    PARTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(part))
    return part


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--loads", nargs="+", default=list(LOADS), choices=LOADS)
    options.add_argument("--families", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    options.add_argument("--modes", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"])
    options.add_argument("--rounds", type=int, help="steps of each contender, instead of what its load says")
    options.add_argument("--threads", type=int, default=cores())
    options.add_argument("--again", action="store_true", help="measure also what has been measured")
    given = options.parse_args()
    if not (CORPUS / "corpus.json").exists():
        Corpus.of(python_topics(), vocab=8192, folder=CORPUS)
    parts: dict[tuple[str, str, str], dict[str, Any]] = {}
    for key in itertools.product(given.loads, given.modes, given.families):
        load, mode, family = key
        rounds = given.rounds or LOADS[load].rounds[mode == "compiled"]
        with working(f"{family} {LOADS[load]} {mode}: {rounds} rounds"):
            parts[key] = measured(family, load, mode, given.threads, rounds, given.again)
    limit = max(part["limit"] for part in parts.values())
    rows = [row for (load, mode, family), part in parts.items() for row in table(family, load, mode, part, limit)]
    threads = ", ".join(sorted({str(part["kind"]["threads"]) for part in parts.values()}))
    steps = ", ".join(f"{LOADS[k[0]]} {k[1]}: {part['kind']['rounds']}" for k, part in parts.items() if k[2] == "gpt2")
    note = (
        f"float32, threads: {threads}; medians of interleaved steps ({steps}). Limit: {limit / 1e9:.0f} GFLOP/s, the "
        "best product of two matrices. Peak: of resident memory; of the run: without what was resident once the "
        f"libraries were imported. Losses: largest difference over {LOSSES} steps (or as many as there were), while "
        f"the learning rate rises over {WARMUP}."
    )
    details = {" ".join(key): part for key, part in parts.items()}
    publish("training_speed", rows, note=note, only_print=given.no_publish, details=details)


if __name__ == "__main__":
    main()
