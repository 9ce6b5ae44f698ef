"""Changed files for `certify` of onnxsim, which tries to prove that two are equal, and for our check in f64."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from miscompilations_kinds import mutate, seen
from monograph.backends.onnx.lower import lower
from monograph.backends.onnx.save import save
from monograph.exact import Stage, exact_difference
from monograph.frontends.onnx.file import open_onnx
from monograph.frontends.onnx.load import read_graph
from monograph.hard_inputs import Trial
from monograph.ir.graph import Graph
from monograph.passes.differential import EXACT
from report import WORK, parser, publish

KINDS = ("bert", "llama", "gpt2", "t5")
PACKAGES = ("onnxsim==0.8.1", "z3-solver", "onnxruntime==1.32.0", "onnx==1.23.2")
TRIALS = (Trial("holed", 3, 7, joined=True),)
SIZES = {"batch": 3, "tokens": 7}
CERTIFY = """
import json, sys, time
import onnx
from onnxsim.certify import certify
for line in sys.stdin:
    pair = [onnx.load(path) for path in json.loads(line)]
    start = time.process_time()
    try:
        report = certify(*pair, timeout_ms=5000, total_timeout_ms=20000)
        found = {w.status for w in report.windows}
        said = "refuted" if "refuted" in found else "proved" if report.ok else "skipped"
    except Exception as error:
        said = type(error).__name__
    print(json.dumps([said, time.process_time() - start]), flush=True)
"""


def environment(python: str | None) -> str:
    """A Python with onnxsim: the one that is given, or one of an environment of its own."""
    place = WORK / "certify"
    if python is None and not (place / "ready").exists():
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([str(place / "bin" / "python"), "-m", "pip", "install", "-q", *PACKAGES], check=True)
        (place / "ready").touch()
    return python or str(place / "bin" / "python")


def sized(path: Path) -> str:
    """The file with numbers for its symbols, which is what `certify` can encode."""
    model = onnx.load(path)
    for v in (*model.graph.input, *model.graph.output):
        for d in v.type.tensor_type.shape.dim:
            if d.dim_param in SIZES:
                d.dim_value = SIZES[d.dim_param]
    del model.graph.value_info[:]
    onnx.save(onnx.shape_inference.infer_shapes(model, data_prop=True), path)
    return str(path)


def files(folder: Path) -> list[tuple[Graph, Any]]:
    """Exported files, as graphs with their weights."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from exported_models import exported

    found: list[tuple[Graph, Any]] = []
    for kind in KINDS:
        place = folder / kind
        place.mkdir()
        graph, weights, _ = read_graph(open_onnx(exported(kind, place)))
        found.append((graph, weights))
    return found


def ours(before: Graph, after: Graph, weights: Mapping[str, Any]) -> tuple[bool, float]:
    """(whether the graphs differ in f64, seconds)."""
    start = time.process_time()
    pair = [Stage("before", before, 0.0, TRIALS), Stage("after", after, EXACT, TRIALS)]
    return seen(lambda: exact_difference(pair, weights, ())), time.process_time() - start


def main() -> None:
    options: argparse.ArgumentParser = parser(__doc__)
    options.add_argument("--pairs", type=int, default=60, help="how many")
    options.add_argument("--python", help="a Python that has onnxsim and z3-solver")
    given = options.parse_args()
    counts, seconds = Counter[tuple[bool, str]](), [0.0, 0.0]
    command = [environment(given.python), "-c", CERTIFY]
    with (
        tempfile.TemporaryDirectory() as scratch,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as peer,
    ):
        assert peer.stdin is not None
        assert peer.stdout is not None
        models = files(Path(scratch))
        for seed in range(given.pairs):
            rng = random.Random(seed)
            graph, weights = rng.choice(models)
            after = graph.copy()
            mutate(after, rng)
            pair = [Path(scratch) / name for name in ("a.onnx", "b.onnx")]
            for made, path in zip((graph, after), pair, strict=True):
                save(lower(made, weights), path)
            differ, took = ours(graph, after, weights)
            peer.stdin.write(json.dumps([sized(path) for path in pair]) + "\n")
            peer.stdin.flush()
            said, longer = json.loads(peer.stdout.readline())
            counts[differ, said] += 1
            seconds = [seconds[0] + took, seconds[1] + longer]
    rows = [
        {"our check": "differ" if d else "equal", "onnxsim.certify": said, "pairs": n}
        for (d, said), n in sorted(counts.items(), reverse=True)
    ]
    note = (
        f"One attribute or operand is changed in the graph of a file. Ours took {seconds[0]:.1f} s of the processor, "
        f"`certify` {seconds[1]:.1f} s; `skipped`: it can neither prove nor refute."
    )
    publish("certify", rows, note=note, seconds=seconds, peers=PACKAGES, only_print=given.no_publish)


if __name__ == "__main__":
    main()
