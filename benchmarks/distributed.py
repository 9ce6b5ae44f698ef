"""One process against two and four: the largest difference of a loss, and of what a checkpoint of two goes on to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import monograph as mg
from monograph.console import working
from monograph.frontends.dsl import load_family
from monograph.training.log import read_log
from report import WORK, parser, publish

STEPS, SAVED, LIMIT = 20, 10, 1e-5
SIZES = {"dim": 64, "ffn": 128, "layers": 4, "heads": 4, "kv_heads": 2, "tied": True}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "1 process": (1, {}),
    "2-process DDP": (2, {}),
    "2-process FSDP2": (2, {"strategy": "fsdp"}),
    "2-process tensor parallel": (2, {"tensor": 2}),
    "2x2, DDP x tensor": (4, {"tensor": 2}),
    "2x2, FSDP2 x tensor": (4, {"tensor": 2, "strategy": "fsdp"}),
}
RESUMED = {
    "2-process FSDP2": ("1 process", "4-process FSDP2", "2x2, DDP x tensor"),
    "2-process tensor parallel": ("1 process", "4-process FSDP2", "2x2, DDP x tensor"),
}


def work(folder: Path, resume: bool, settings: dict[str, Any]) -> None:
    """One process of a run."""
    corpus = mg.Corpus.of(mg.python_topics()[:200_000], vocab=512)
    model = load_family("llama")(vocab=512, **SIZES)
    every = {"steps": STEPS, "batch": 8, "length": 64, "device": "cpu", "checkpoint_every": SAVED}
    mg.train(model, corpus, folder=folder, resume=resume, progress=False, **every, **settings)


def start(folder: Path, size: int, settings: dict[str, Any], *, resume: bool = False) -> list[dict[str, Any]]:
    """Do a run in `size` processes; gives its log."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)] if size > 1 else []
    command = [sys.executable, *torchrun, __file__, "--work", str(folder), json.dumps(settings), str(int(resume))]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return read_log(folder)


def without_the_end(folder: Path) -> Path:
    """A copy of a run as it was at step SAVED."""
    copy = folder.with_name("resumed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "checkpoints" / f"step-{STEPS:08d}")
    return copy


def difference(one: list[dict[str, Any]], found: list[dict[str, Any]], first: int = 1) -> dict[str, float]:
    pairs = [(a, b) for a, b in zip(one, found, strict=True) if a["step"] >= first]
    held = [abs(a["held_out"] - b["held_out"]) for a, b in pairs if "held_out" in a]
    return {"loss": max(abs(a["loss"] - b["loss"]) for a, b in pairs), "held out": max(held)}


def measure(root: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    logs: dict[str, list[dict[str, Any]]] = {}
    layouts = {**LAYOUTS, "4-process FSDP2": (4, {"strategy": "fsdp"})}
    for i, (name, (size, settings)) in enumerate(LAYOUTS.items()):
        logs[name] = start(root / str(i), size, settings)
        if i:
            rows.append({"run": name, "went on from step 10 of": "-", **difference(logs["1 process"], logs[name])})
        for other in RESUMED.get(name, ()):
            found = start(without_the_end(root / str(i)), *layouts[other], resume=True)
            values = difference(logs["1 process"], found, SAVED + 1)
            rows.append({"run": other, "went on from step 10 of": name, **values})
    return rows


def main() -> None:
    if "--work" in sys.argv:
        folder, settings, resume = sys.argv[sys.argv.index("--work") + 1 :]
        work(Path(folder), resume == "1", json.loads(settings))
        return
    given = parser(__doc__).parse_args()
    root = WORK / "distributed"
    shutil.rmtree(root, ignore_errors=True)
    with working("training in 1, 2 and 4 processes"):
        rows = measure(root)
    worst = max(max(r["loss"], r["held out"]) for r in rows)
    note = f"Largest difference from one process, in nats, over {STEPS} steps (resumed: the last {STEPS - SAVED})"
    note += f", gloo. Worst {worst:.1e}, aim {LIMIT}."
    publish("distributed", rows, note=note, only_print=given.no_publish)
    if worst > LIMIT:
        sys.exit(1)


if __name__ == "__main__":
    main()
