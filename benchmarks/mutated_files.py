"""Valid ONNX files with one thing damaged, hundreds of times: is each read rightly, or refused by one typed error?"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from mutated_files_cases import MADE, write
from mutated_files_kinds import damage_data, mutant
from report import Row, parser, publish

EXPORTED = ("bert", "llama")
"""Tiny models of transformers, as an exporter writes them, beside the files that are made by hand."""
Told = dict[str, Any]


def bases(scratch: Path) -> dict[str, onnx.ModelProto]:
    """The valid files by name."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from exported_models import exported

    found = {name: make() for name, make in MADE.items()}
    for kind in EXPORTED:
        place = scratch / kind
        place.mkdir()
        found[kind] = onnx.load(exported(kind, place))
    return found


def judged(seeds: range, scratch: Path, files: dict[str, onnx.ModelProto]) -> Iterator[Told]:
    """What became of each mutant; those of a worker that stands apart, since a file may make it crash or hang."""
    command = [sys.executable, str(Path(__file__).with_name("mutated_files_worker.py"))]
    log = (scratch / "log").open("w")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        for seed in seeds:
            name, kind, data, damaged = mutant(files, seed)
            path = write(data, scratch / str(seed) / "in")
            kind = damage_data(path.parent, random.Random(seed)) if damaged else kind
            worker.stdin.write(f"{path}\n")
            worker.stdin.flush()
            yield {"seed": seed, "file": name, "kind": kind, **json.loads(worker.stdout.readline())}
            shutil.rmtree(scratch / str(seed))


def faults(told: Told) -> list[str]:
    """What must not be: a crash, a hang, an error that is not typed, other numbers, something left behind."""
    if "died" in told:
        return [f"died: {told['died']}"]
    found = [f"{step}: {e['kind']} {e['text']} at {e['at']}" for step in ("load", "optimize")
             if isinstance(e := told[step], dict) and not e["typed"]]  # fmt: skip
    found += [f"other numbers: {told['numbers']}"] if told["numbers"] else []
    found += [f"left behind: {told['left']}"] if told["left"] else []
    return found + [f"fault in a rewrite: {u}" for u in told.get("undone", []) if "a fault, " in u]


def refused(told: Told, step: str) -> bool:
    return isinstance(told.get(step), dict)


def row(name: str, group: list[Told]) -> Row:
    alive = [t for t in group if "died" not in t]
    runs = [t for t in alive if str(t.get("runtime", "")).endswith("trials") and not t["runtime"].startswith("0 ")]
    found = {
        "file": name,
        "mutants": len(group),
        "loaded": sum(not refused(t, "load") for t in alive),
        "and equal in ONNX Runtime": sum(not t["numbers"] for t in runs),
        "one typed error": sum(refused(t, "load") and t["load"]["typed"] for t in alive),
        "refused, though ONNX Runtime opens it": sum(bool(t.get("taken")) for t in alive),
        "optimized": sum(not refused(t, "optimize") for t in alive),
        "faults": sum(bool(faults(t)) for t in group),
    }
    most = max((t.get("peak", 0) for t in alive), default=0)
    return {**found, "longest (s)": max(t["seconds"] for t in group), "largest (MB)": most / 1e6}


def main() -> None:
    options: argparse.ArgumentParser = parser(__doc__)
    options.add_argument("--mutants", type=int, default=500, help="how many")
    options.add_argument("--first", type=int, default=0, help="seed of the first one")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        files = bases(scratch)
        told = list(judged(range(given.first, given.first + given.mutants), scratch, files))
    wrong = [{"seed": t["seed"], "file": t["file"], "kind": t["kind"], "faults": f} for t in told if (f := faults(t))]
    strict = Counter(t["load"]["text"].split(": ", 1)[-1][:160] for t in told if t.get("taken"))
    kinds = {k: dict(Counter(_became(t) for t in told if t["kind"] == k)) for k in sorted({t["kind"] for t in told})}
    rows = [row(name, [t for t in told if t["file"] == name]) for name in sorted({t["file"] for t in told})]
    note = (
        "Each file is loaded and optimized in a process with 2 GiB of memory and 30 s of the processor. A fault is a "
        "crash, a hang, an error that is not typed or does not name the file, other numbers than ONNX Runtime gives, "
        "or a file left behind."
    )
    publish("mutated_files", [*rows, row("all", told)], note=note, kinds=kinds, faults=wrong, strict=dict(strict),
            only_print=given.no_publish)  # fmt: skip
    if wrong:
        print(json.dumps(wrong, indent=1))


def _became(told: Told) -> str:
    return "died" if "died" in told else "refused" if refused(told, "load") else "loaded"


if __name__ == "__main__":
    main()
