"""SmolLM2 built and run by two states of the project in turn: seconds of a build, decode and prefill tokens a second.

`python benchmarks/versions.py BEFORE` takes the Python of an environment in which another state is installed; this one
is measured by the Python that runs the command.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from report import WORK, Row, parser, publish

WORKER = """
import json, sys, time, numpy as np
import monograph as mg
source, folder, prompt, steps = sys.argv[1:]
model = mg.load(source)
start = time.perf_counter()
engine = mg.build(model, folder, threads=1)
built = time.perf_counter() - start
session = engine.session
ids = np.random.default_rng(0).integers(0, 40000, (1, int(prompt)))
session.prefill(ids, [int(prompt)])
start = time.perf_counter()
session.prefill(ids, [int(prompt)])
prefill = time.perf_counter() - start
session.step(ids[:, 0])
start = time.perf_counter()
for t in range(int(steps)):
    logits = session.step(ids[:, t])
decode = time.perf_counter() - start
print(json.dumps({"build": built, "prefill": int(prompt) / prefill, "decode": int(steps) / decode,
                  "logits": float(np.abs(logits).max())}))
"""


def measure(python: str, source: Path, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    """One build and one run in a process of its own."""
    command = [python, "-c", WORKER, str(source), str(folder), str(given.prompt), str(given.steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{python} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("before", help="Python of the other state")
    options.add_argument("--source", type=Path, required=True, help="a folder of float weights, such as SmolLM2's")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--prompt", type=int, default=256)
    options.add_argument("--steps", type=int, default=64)
    given = options.parse_args()
    pythons = {"before": given.before, "now": sys.executable}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
    for _ in range(given.rounds):
        for name, python in pythons.items():
            runs[name].append(measure(python, given.source, WORK / f"versions-{name}", given))
    medians = {n: {k: statistics.median(r[k] for r in found) for k in found[0]} for n, found in runs.items()}
    rows: list[Row] = [
        {"state": n, "build (s)": m["build"], "prefill (tokens/s)": m["prefill"], "decode (tokens/s)": m["decode"]}
        for n, m in medians.items()
    ]
    ratios = {k: [b[k] / a[k] for a, b in zip(*runs.values(), strict=True)] for k in ("build", "prefill", "decode")}
    shown = ", ".join(f"{k} {statistics.median(r):.3f} ({min(r):.3f} to {max(r):.3f})" for k, r in ratios.items())
    publish("versions", rows, note=f"Now over before, in turn, median and range of {given.rounds}: {shown}.",
            only_print=given.no_publish)  # fmt: skip


if __name__ == "__main__":
    main()
