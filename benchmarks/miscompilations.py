"""One thing changed in a graph after a pass, a thousand times: which checks see it, and what do they cost?"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monograph.backends.onnx.lower import lower
from monograph.backends.onnx.rewrites import AS_IT_IS
from monograph.backends.onnx.save import save
from monograph.exact import Stage, exact_difference
from monograph.frontends.dsl import load_family
from monograph.frontends.onnx.file import open_onnx
from monograph.frontends.onnx.load import read_graph
from monograph.hard_inputs import Trial
from monograph.ir.errors import MonographError
from monograph.ir.graph import Graph, Node
from monograph.ir.verify import verify
from monograph.original import Original
from monograph.passes.differential import CASES, EXACT, Case, cases_of, difference
from monograph.passes.pipelines import PIPELINES
from monograph.raised import Raised, raised_model
from report import Row, parser, publish

SIZES: dict[str, Any] = {"vocab": 40, "dim": 16, "layers": 1, "heads": 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("decode", {"kv_heads": 2, "ffn": 24}),
    "gpt2": ("decode", {}),
    "mistral": ("decode", {"kv_heads": 2, "window": 8, "ffn": 24}),
    "bert": ("encode", {"ffn": 24}),
    "transformer2017": ("decode", {"ffn": 24, "decoder_layers": 1}),
}
FILES = ("bert", "llama", "gpt2", "t5")
LARGER = tuple(Case(c.mask, 4, 19, 9 if c.past else 0) for c in CASES if c.batch > 1)
FILE_TRIALS = (Trial("left-padded", 4, 9), Trial("all-ones", 2, 12), Trial("holed", 3, 7))
TIGHT, TIGHTER = 1e-6, 1e-12


@dataclass
class Count:
    """How many mutants each check caught, and those that none did, by kind; seconds of the work and of the check."""

    caught: Counter[str] = field(default_factory=Counter[str])
    slipped: Counter[str] = field(default_factory=Counter[str])
    equal: Counter[str] = field(default_factory=Counter[str])
    total: int = 0
    work: float = 0.0
    check: float = 0.0


def changed(value: Any, rng: random.Random) -> Any:
    """Another value of an attribute of the same kind; the same where there is none."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice((-1, 1))
    if isinstance(value, float):
        return value * rng.choice((0.0, 0.5, 0.99, 1.01, 2.0)) if value else 0.01
    if isinstance(value, tuple) and len(value) > 1:
        order = list(value)
        i, j = rng.sample(range(len(order)), 2)
        order[i], order[j] = order[j], order[i]
        return tuple(order)
    return value


def attribute(graph: Graph, node: Node, rng: random.Random) -> str:
    """Change one attribute."""
    if not node.attributes:
        return ""
    name = rng.choice(sorted(node.attributes))
    new = changed(node.attributes[name], rng)
    if new == node.attributes[name] and type(new) is type(node.attributes[name]):
        return ""
    done = put(graph, node, list(node.operands), {**node.attributes, name: new})
    return f"{node.op.name}.{name}" if done else ""


def operand(graph: Graph, node: Node, rng: random.Random) -> str:
    """Swap two operands of one type, or read another value of that type."""
    given = [i for i, v in enumerate(node.operands) if v is not None]
    if not given:
        return ""
    i, operands = rng.choice(given), list(node.operands)
    old = operands[i]
    assert old is not None
    earlier = [v for n in graph if n.order < node.order for v in n.outputs if v.type == old.type and v is not old]
    stored = [v for v in graph.params.values() if v.type == old.type and v is not old]
    swaps = [j for j in given if operands[j] is not old and getattr(operands[j], "type", None) == old.type]
    if swaps and rng.random() < 0.5:
        j = rng.choice(swaps)
        operands[i], operands[j] = operands[j], old
    elif earlier or stored:
        operands[i] = rng.choice([*earlier, *stored])
    else:
        return ""
    return f"{node.op.name} operand" if put(graph, node, operands, dict(node.attributes)) else ""


def slot(graph: Graph, node: Node, rng: random.Random) -> str:
    """What one slot is given goes to another."""
    names = [s.output for s in graph.slots if s.output in graph.outputs]
    pairs = [(a, b) for a in names for b in names if a < b and graph.outputs[a].type == graph.outputs[b].type]
    if not pairs:
        return ""
    a, b = rng.choice(pairs)
    graph.outputs[a], graph.outputs[b] = graph.outputs[b], graph.outputs[a]
    return "slot written"


def put(graph: Graph, node: Node, operands: list[Any], attributes: Mapping[str, Any]) -> bool:
    """Another node in the place of one, if it gives the same types."""
    try:
        with graph.at(node):
            made = graph.add(node.op, operands, dict(attributes))
    except (MonographError, ArithmeticError, LookupError, TypeError, ValueError):
        return False
    alike = made[0].producer is not None and made[0].producer.attributes == node.attributes
    if [v.type for v in made] != [v.type for v in node.outputs] or (alike and operands == list(node.operands)):
        assert made[0].producer is not None
        graph.erase(made[0].producer)
        return False
    for old, new in zip(node.outputs, made, strict=True):
        graph.replace(old, new)
    graph.erase(node)
    return True


MUTATIONS: tuple[Callable[[Graph, Node, random.Random], str], ...] = (attribute, attribute, operand, slot)


def mutate(graph: Graph, rng: random.Random) -> str:
    """Change one thing such that the graph still types; gives its kind."""
    for _ in range(200):
        kind = rng.choice(MUTATIONS)(graph, rng.choice(list(graph)), rng)
        if kind:
            return kind
    raise AssertionError("nothing can be changed")


def seen(check: Callable[[], object]) -> bool:
    """Whether a check finds something, or cannot run what it is given."""
    try:
        return bool(check())
    except (MonographError, ArithmeticError, LookupError, TypeError, ValueError):
        return True


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
    start = time.perf_counter()
    before = graph.copy()
    for i, step in enumerate(passes[: last + 1]):
        before = graph.copy() if i == last else before
        step.run(graph)
    count.work += time.perf_counter() - start
    kind = mutate(graph, rng)
    count.total += 1
    start = time.perf_counter()
    typed = seen(lambda: verify(graph) is None)
    numbers = not typed and seen(lambda: difference(before, graph))
    count.check += time.perf_counter() - start
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
        start = time.perf_counter()
        graph, weights, _ = read_graph(open_onnx(path))
        made = raised_model(graph, weights)
        took = time.perf_counter() - start
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
    start = time.perf_counter()
    wrong, error = original.difference(path)
    told: Any = {"weights": weights, "fixed": file.made.report.read}
    if wrong:
        count.caught["ONNX Runtime"] += 1
    elif seen(lambda: exact_difference([Stage("file", file.made.plain, 0.0), Stage("mutant", graph, EXACT)], **told)):
        count.caught["f64"] += 1
    else:
        graphs = [Stage("made", file.made.graph, 0.0, FILE_TRIALS), Stage("mutant", graph, TIGHTER, FILE_TRIALS)]
        (count.slipped if exact_difference(graphs, **told) or error > TIGHT else count.equal)[kind] += 1
    count.check += time.perf_counter() - start


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
    options.add_argument("--seconds", type=float, default=3600.0, help="when to end, with fewer mutants")
    given = options.parse_args()
    ends = time.monotonic() + given.seconds
    graphs, written = Count(), Count()
    with tempfile.TemporaryDirectory() as scratch:
        files = list(imported(Path(scratch)))
        for seed in range(given.files):
            if time.monotonic() > ends - given.seconds / 2:
                break
            of_a_file(seed, written, files)
    for seed in range(given.own):
        if time.monotonic() > ends:
            break
        own(seed, graphs)
    kinds = {
        k: {"slipped": dict(c.slipped), "no difference found": dict(c.equal)}
        for k, c in (("graphs", graphs), ("files", written))
    }
    note = (
        "By numbers: of graphs, the differential check that `optimize --check` and the tests run after every pass, and "
        "that a build does not run; of files, the comparison in ONNX Runtime that every `optimize` runs. `no "
        f"difference found`: none above {TIGHT:g}, of graphs with two more draws of weights at batch 4 and 19 tokens."
    )
    publish("miscompilations", [row("our graphs", graphs), row("optimized files", written)], note=note, kinds=kinds,
            only_print=given.no_publish)  # fmt: skip
    if given.no_publish:
        print(kinds)


if __name__ == "__main__":
    main()
