"""Two small models trained by two states of the project in turn: seconds of a step, peak memory, and the last loss.

`python benchmarks/training_versions.py BEFORE` takes the Python of an environment in which another state is installed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from report import Row, parser, publish

MODELS = {
    "gpt2": {"dim": 256, "layers": 6, "heads": 8, "max_positions": 256},
    "llama": {"dim": 256, "ffn": 688, "layers": 6, "heads": 8, "kv_heads": 8},
}
WORKER = """
import json, resource, statistics, sys, time
import torch
import monograph as mg
from monograph.frontends.dsl import load_family
torch.set_num_threads(1)
name, sizes, steps = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
text = "\\n\\n".join(f"Number {i} is followed by {i + 1}, and twice {i} is {2 * i}." for i in range(6000))
corpus = mg.Corpus.of(text, vocab=512)
times, losses = [time.perf_counter()], []
def seen(step):
    times.append(time.perf_counter())
    losses.append(step.loss)
model = load_family(name)(vocab=corpus.vocab, **sizes)
settings = {"steps": steps, "batch": 8, "length": 256, "device": "cpu", "evaluate_every": steps}
mg.train(model, corpus, progress=False, observe=seen, **settings)
spent = [b - a for a, b in zip(times[2:], times[3:])]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"step": statistics.median(spent[:-1]), "peak": peak / 1024, "loss": losses[-1]}))
"""


def measure(python: str, name: str, steps: int) -> dict[str, float]:
    """One run in a process of its own."""
    command = [python, "-c", WORKER, name, json.dumps(MODELS[name]), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{python} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("before", help="Python of the other state")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=12)
    given = options.parse_args()
    rows: list[Row] = []
    for name in MODELS:
        pairs = [
            (measure(given.before, name, given.steps), measure(sys.executable, name, given.steps))
            for _ in range(given.rounds)
        ]
        before, now = ({k: statistics.median(p[i][k] for p in pairs) for k in pairs[0][i]} for i in (0, 1))
        rows.append(
            {
                "model": name,
                "step before (s)": before["step"],
                "step now (s)": now["step"],
                "now / before": statistics.median(b["step"] / a["step"] for a, b in pairs),
                "peak before (MB)": before["peak"],
                "peak now / before": statistics.median(b["peak"] / a["peak"] for a, b in pairs),
                "same loss": "yes" if all(a["loss"] == b["loss"] for a, b in pairs) else "no",
            }
        )
    note = f"{given.steps} steps of 8 x 256 tokens, one thread, in turn, median of {given.rounds}."
    publish("training_versions", rows, note=note, only_print=given.no_publish)


if __name__ == "__main__":
    main()
