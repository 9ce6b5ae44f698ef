"""One thing changed in a graph after a pass, a thousand times: which checks see it, and what do they cost?"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miscompilations_kinds import Count, mutate, seen
from miscompilations_raising import of_raising
from monograph.backends.onnx.lower import lower
from monograph.backends.onnx.rewrites import AS_IT_IS
from monograph.backends.onnx.save import save
from monograph.backends.onnxruntime.choices import chosen
from monograph.backends.target import Target
from monograph.exact import Stage, exact_difference
from monograph.frontends.dsl import load_family
from monograph.frontends.onnx.file import open_onnx
from monograph.frontends.onnx.load import read_graph
from monograph.hard_inputs import Trial
from monograph.ir.graph import Graph
from monograph.ir.verify import verify
from monograph.original import Original
from monograph.passes.differential import CASES, EXACT, Case, cases_of, difference
from monograph.passes.pipelines import PIPELINES
from monograph.raised import Raised, raised_model
from monograph.twins import graphs_of, wrong_in
from report import Row, parser, publish

SIZES: dict[str, Any] = {"vocab": 40, "dim": 16, "layers": 1, "heads": 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("decode", {"kv_heads": 2, "ffn": 24}),
    "gpt2": ("decode", {}),
    "mistral": ("decode", {"kv_heads": 2, "window": 8, "ffn": 24}),
    "bert": ("encode", {"ffn": 24}),
    "transformer2017": ("decode", {"ffn": 24, "decoder_layers": 1}),
}
BUILT = ("bert", "gpt2", "llama", "mistral")
FILES = ("bert", "llama", "gpt2", "t5")
LARGER = tuple(Case(c.mask, 4, 19, 9 if c.past else 0) for c in CASES if c.batch > 1)
FILE_TRIALS = (Trial("left-padded", 4, 9), Trial("all-ones", 2, 12), Trial("holed", 3, 7))
TIGHT, TIGHTER = 1e-6, 1e-12


def larger(before: Graph, after: Graph, seed: int) -> str | None:
    """What a check with more rows and tokens and a bound a thousand times as tight sees."""
    return difference(before, after, tolerance=TIGHTER, seed=seed, cases=(*LARGER, *cases_of(before)))


def own(seed: int, count: Count) -> None:
    """A mutant of a graph of our own, after a pass that is drawn."""
    rng = random.Random(seed)
    name = rng.choice(sorted(MODELS))
    pipeline, more = MODELS[name]
    graph = load_family(name)(**SIZES, **more).graph()
    passes = PIPELINES[pipeline].passes
    last = rng.randrange(len(passes))
    start = time.process_time()
    before = graph.copy()
    for i, step in enumerate(passes[: last + 1]):
        before = graph.copy() if i == last else before
        step.run(graph)
    count.work += time.process_time() - start
    kind = mutate(graph, rng)
    count.total += 1
    start = time.process_time()
    typed = seen(lambda: verify(graph) is None)
    numbers = not typed and seen(lambda: difference(before, graph))
    count.check += time.process_time() - start
    if typed or numbers:
        count.caught["types" if typed else "differential"] += 1
    elif any(seen(lambda s=s: larger(before, graph, s)) for s in (1, 2)):
        count.slipped[kind] += 1
    else:
        count.equal[kind] += 1


@dataclass(frozen=True)
class Imported:
    """An exported file with its results, its graph, what was made of it, and in how many seconds."""

    original: Original
    graph: Graph
    made: Raised
    weights: Any
    seconds: float
    path: Path


def imported(folder: Path) -> Iterator[Imported]:
    """Exported files."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from exported_models import exported

    for kind in FILES:
        place = folder / kind
        place.mkdir()
        path = exported(kind, place)
        start = time.process_time()
        graph, weights, _ = read_graph(open_onnx(path))
        made = raised_model(graph, weights)
        took = time.process_time() - start
        yield Imported(Original.of(path, graph), graph, made, weights, took, place / "mutant.onnx")


def of_a_file(seed: int, count: Count, files: list[Imported]) -> None:
    """A mutant of what `optimize` makes of a file, held against the file in ONNX Runtime."""
    rng = random.Random(seed)
    file = rng.choice(files)
    original, weights, path = file.original, file.weights, file.path
    graph = file.made.graph.copy()
    kind = mutate(graph, rng)
    count.total += 1
    count.work += file.seconds
    if seen(lambda: verify(graph) is None) or seen(
        lambda: save(lower(graph, weights, pipeline=AS_IT_IS), path) is None
    ):
        count.caught["types"] += 1
        return
    start = time.process_time()
    wrong, error = original.difference(path)
    told: Any = {"weights": weights, "fixed": file.made.report.read}
    if wrong:
        count.caught["ONNX Runtime"] += 1
    elif seen(lambda: exact_difference([Stage("file", file.made.plain, 0.0), Stage("mutant", graph, EXACT)], **told)):
        count.caught["f64"] += 1
    else:
        graphs = [Stage("made", file.made.graph, 0.0, FILE_TRIALS), Stage("mutant", graph, TIGHTER, FILE_TRIALS)]
        (count.slipped if exact_difference(graphs, **told) or error > TIGHT else count.equal)[kind] += 1
    count.check += time.process_time() - start


def of_a_build(seed: int, count: Count) -> None:
    """A mutant of a graph that a build makes, held against the plain one as every build does with a twin."""
    rng = random.Random(seed)
    name = rng.choice(sorted(BUILT))
    start = time.process_time()
    graph = load_family(name)(**{**SIZES, **MODELS[name][1], "dim": 32}).graph()
    graphs = graphs_of(graph, chosen(Target.of("cpu"), None))
    count.work += time.process_time() - start
    file = rng.choice(sorted(graphs))
    kind = mutate(graphs[file], rng)
    count.total += 1
    start = time.process_time()
    typed = seen(lambda: verify(graphs[file]) is None)
    numbers = not typed and seen(lambda: wrong_in(graph, graphs, file)[0])
    count.check += time.process_time() - start
    if typed or numbers:
        count.caught["types" if typed else "twin"] += 1
    else:
        told = any(seen(lambda s=s: wrong_in(graph, graphs, file, seed=s, tolerance=TIGHTER)[0]) for s in (1, 2))
        (count.slipped if told else count.equal)[kind] += 1


def row(name: str, count: Count) -> Row:
    counted = count.total - sum(count.equal.values())
    caught = sum(count.caught.values())
    numbers = caught - count.caught["types"]
    return {
        "mutants of": name, "all": count.total, "no difference found": count.total - counted, "others": counted,
        "caught by types": count.caught["types"], "caught by numbers": numbers, "slipped": counted - caught,
        "passes (s)": count.work, "checks (s)": count.check,
    }  # fmt: skip


def main() -> None:
    options: argparse.ArgumentParser = parser(__doc__)
    options.add_argument("--own", type=int, default=750, help="mutants of graphs of our own")
    options.add_argument("--files", type=int, default=250, help="mutants of optimized files")
    options.add_argument("--built", type=int, default=250, help="mutants of graphs of builds")
    options.add_argument("--raised", type=int, default=5, help="rounds over all layers that raising makes of the files")
    options.add_argument("--seconds", type=float, default=3600.0, help="when to end, with fewer mutants")
    given = options.parse_args()
    ends = time.monotonic() + given.seconds
    graphs, built, layers, written = Count(), Count(), Count(), Count()
    with tempfile.TemporaryDirectory() as scratch:
        files = list(imported(Path(scratch)))
        for seed in range(given.files):
            if time.monotonic() > ends - given.seconds / 2:
                break
            of_a_file(seed, written, files)
        for seed in range(given.raised):
            of_raising(seed, layers, [(f.graph, f.weights) for f in files])
    for seed in range(given.own):
        if time.monotonic() > ends:
            break
        own(seed, graphs)
    for seed in range(given.built):
        of_a_build(seed, built)
    counts = {"graphs": graphs, "builds": built, "raising": layers, "files": written}
    kinds = {k: {"slipped": dict(c.slipped), "no difference found": dict(c.equal)} for k, c in counts.items()}
    note = (
        "By numbers, in f64: of graphs, the differential check that `optimize --check` and the tests run after every "
        "pass; of builds, the cases of it that every build computes for a small twin; of raised layers, with one "
        "attribute changed, the comparison that every layer stands before it is made; of files, ONNX Runtime and then "
        f"the graphs in f64. `no difference found`: none above {TIGHTER:g}, with two more draws, more rows and tokens."
    )
    rows = [row("our graphs", graphs), row("graphs of builds", built), row("raised layers", layers),
            row("optimized files", written)]  # fmt: skip
    publish("miscompilations", rows, note=note, kinds=kinds, only_print=given.no_publish)
    if given.no_publish:
        print(kinds)


if __name__ == "__main__":
    main()
