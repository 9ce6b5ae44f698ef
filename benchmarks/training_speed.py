"""Training against plain PyTorch and transformers: the same losses, tokens per second, memory, share of the limit.

GPT-2 and Llama of about 10 and 135 million parameters, float32, the same first weights and batches. A process for each
contender; they take a step in turn, so that a noisy minute hits all alike.
"""

from __future__ import annotations

import contextlib
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
from report import Row, parser, publish
from training_worker import BATCH, CORPUS, LENGTH, SIZES, model_of

CONTENDERS = {"gpt2": ("plain PyTorch", "transformers", "Monograph"), "llama": ("transformers", "Monograph")}
LOSSES = 100
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
def started(family: str, size: str, mode: str, threads: int) -> Iterator[list[Contender]]:
    found: list[Contender] = []
    try:
        for name in CONTENDERS[family]:
            command = [sys.executable, str(WORKER), name, family, size, mode, str(threads)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            found.append(Contender(name, process))
            found[-1].before = found[-1].answer()["before"]
            found[-1].steps(2, counts=False)  # Compiles, and brings memory to what it needs.
        yield found
    finally:
        for contender in found:
            contender.process.kill()
            contender.process.wait()


def compare(family: str, size: str, mode: str, threads: int, rounds: int) -> list[Contender]:
    with started(family, size, mode, threads) as contenders:
        for number in range(rounds):
            # The order turns, so that none always follows the same one.
            for i in range(len(contenders)):
                contenders[(number + i) % len(contenders)].steps(1)
    return contenders


def table(family: str, size: str, mode: str, contenders: list[Contender], peak: float) -> list[Row]:
    """One row a contender; ratios are against the best of the others."""
    graph = with_loss(model_of(family, size).graph())
    flops = 3 * at(flops_of(graph), {"B": BATCH[size], "S": LENGTH})
    times = {c.name: statistics.median(c.seconds) for c in contenders}
    others = [c for c in contenders if c.name != "Monograph"]
    fastest, smallest = min(times[c.name] for c in others), min(c.peak for c in others)
    needed = min(c.peak - c.before for c in others)
    return [
        {
            "model": f"{family} {size}",
            "mode": mode,
            "trained by": c.name,
            "tokens/s": BATCH[size] * LENGTH / times[c.name],
            "times the best other": fastest / times[c.name],
            "of fp32 limit (%)": 100 * flops / times[c.name] / peak,
            "peak (MB)": c.peak / 1e6,
            "peak / least other": c.peak / smallest,
            "of the run (MB)": (c.peak - c.before) / 1e6,
            "of the run / least other": (c.peak - c.before) / needed,
            "loss differs by": max(map(abs, differences(c, others[0])), default=0.0),
        }
        for c in contenders
    ]


def differences(contender: Contender, other: Contender) -> list[float]:
    return [a - b for a, b in zip(contender.losses, other.losses, strict=False)][:LOSSES]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    options.add_argument("--modes", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"])
    options.add_argument("--rounds", type=int, default=LOSSES - 2, help="steps of each contender (compiled: a fifth)")
    options.add_argument("--threads", type=int, default=cores())
    given = options.parse_args()
    if not (CORPUS / "corpus.json").exists():
        Corpus.of(python_topics(), vocab=8192, folder=CORPUS)
    rows: list[Row] = []
    details: dict[str, Any] = {}
    limit = measure(given.threads)
    for size in given.sizes:
        for mode in given.modes:
            for family in CONTENDERS:
                rounds = given.rounds if mode == "eager" else max(given.rounds // 5, 5)
                with working(f"{family} {size} {mode}: {rounds} rounds"):
                    found = compare(family, size, mode, given.threads, rounds)
                limit = limit.best(measure(given.threads))
                details[f"{family} {size} {mode}"] = {
                    c.name: {"seconds": c.seconds, "losses": c.losses, "peak": c.peak, "before": c.before}
                    for c in found
                }
                rows += table(family, size, mode, found, limit.flops)
    note = (
        f"float32, {given.threads} threads, {BATCH['10M']} x {LENGTH} tokens (10M) and {BATCH['135M']} x {LENGTH} "
        f"(135M) a step, medians of interleaved steps. Limit: {limit.flops / 1e9:.0f} GFLOP/s, the best product of two "
        "matrices. Peak: of resident memory; of the run: without what was resident once the libraries were imported. "
        "Losses: largest difference over 100 steps (compiled: the steps there were) from the first of its group."
    )
    publish("training_speed", rows, note=note, only_print=given.no_publish, details=details)


if __name__ == "__main__":
    main()
