"""A small twin of a model: the same kinds of layers and settings, narrow and few. And whether passes keep it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from .backends.onnxruntime.feeds import counts_of
from .backends.onnxruntime.variants import ENCODER, LENGTHS, MASKED, variants_of
from .backends.target import Target
from .frontends.dsl import Model, Program
from .frontends.task import LOGITS
from .ir.errors import MonographError, PassError
from .ir.graph import Graph
from .ir.tensors import Array
from .ir.types import f32
from .passes.differential import CASES, EXACT, Case, Extra, cases_of, difference
from .passes.pipelines import PIPELINES

MOST = 1 << 21
"""Weights of the largest twin."""
WIDTH = 64
"""Channels of a feed-forward block of a twin, at most, and of all where heads have a width of their own."""
POSITIONS = 64
"""Tokens that a row of a twin may have."""
_FEW = {"vocab": 64, "window": 8, "source_positions": 16}
"""Tokens, tokens of a window and frames of a sound, at most."""
_DEPTHS, _WIDTHS = ("layers", "decoder_layers"), ("ffn", "inner", "decoder_ffn", "expert_ffn")
_CYCLES = ("every", "dense")
"""Fields that say which layers are of another kind: as many layers show it, and one."""


@dataclasses.dataclass(frozen=True)
class TwinCheck:
    """What was compared in f64 before and after the passes of a build. twin: what it is. graphs: the files of them.

    cases: sets of inputs for each. refused: why nothing was compared ("": something was).
    """

    twin: str = ""
    graphs: tuple[str, ...] = ()
    cases: int = 0
    refused: str = ""

    def __str__(self) -> str:
        if self.refused:
            return f"nothing: {self.refused}"
        return f"{', '.join(self.graphs)} of {self.twin} on {self.cases} sets of inputs, the same in f64"


def check_passes(model: Model, target: Target) -> TwinCheck:
    """Compare a twin of a model before and after the passes of a build, in NumPy.

    target: with the choices of the build. Raises PassError with the case, the numbers and the first layer that differs.
    """
    found = twin_of(model)
    if isinstance(found, str):
        return TwinCheck(refused=found)
    twin, graph = found
    try:
        graphs = graphs_of(graph, target)
    except MonographError as e:
        return TwinCheck(refused=f"the passes do not take a twin: {e.what}")
    total = 0
    for name in graphs:
        try:
            wrong, count = wrong_in(graph, graphs, name)
        except MonographError as e:
            if not _computable(graph):
                return TwinCheck(refused=f"NumPy cannot compute it: {e.what}")
            wrong, count = str(e), 0
        if wrong:
            what = f"the passes of the build change what a twin of the model computes ({name})"
            raise PassError(what, place=model.name, details=[*wrong.splitlines(), f"twin: {twin}"])
        total += count
    return TwinCheck(twin, tuple(graphs), total)


def graphs_of(graph: Graph, target: Target) -> dict[str, Graph]:
    """The graphs of a build of a plain graph, by file name; of two that work together, the one before it is divided."""
    if LOGITS in graph.outputs:  # A build computes them for some tokens only; here all are compared.
        graph.outputs[f"all_{LOGITS}"] = graph.outputs.pop(LOGITS)
    made = variants_of(graph, target, POSITIONS, verify=False)  # Numbers say more.
    if ENCODER in made.graphs:
        whole = graph.copy()
        PIPELINES["decode"].run(whole, verify=False)
        return {f"{ENCODER} and {made.masked} before they are parted": whole}
    return {name: made.graphs[name] for name in dict.fromkeys((made.masked, LENGTHS)) if name in made.graphs}


def wrong_in(
    graph: Graph, graphs: Mapping[str, Graph], name: str, *, seed: int = 0, tolerance: float = EXACT
) -> tuple[str | None, int]:
    """(what one of the graphs of a build computes that the plain graph does not, on how many sets of inputs)."""
    after, trusting = graphs[name], name == LENGTHS and MASKED in graphs
    cases = _cases(graph, after, trusting=trusting)
    extra = _counts(after) if trusting else None
    return difference(graph, after, tolerance=tolerance, seed=seed, cases=cases, extra=extra), len(cases)


def _computable(graph: Graph) -> bool:
    """Whether NumPy computes the plain graph: ops of other formats, and those of a user, may need more."""
    try:
        difference(graph, graph, cases=CASES[:1])
    except MonographError:
        return False
    return True


def _cases(graph: Graph, after: Graph, *, trusting: bool) -> list[Case]:
    """A few of the cases of a graph. trusting: of one that takes rows to be padded on the right and nothing else."""
    past = 4 if after.slots else 0
    mask = "all-ones" if trusting else "left-padded"
    few = [Case("right-padded" if trusting else "holed", 3), *([Case(mask, 3, past=past)] if past else [])]
    own = [c for c in cases_of(graph) if (c.scale != 1.0 or c.length > few[0].length) and bool(c.past) == bool(past)]
    return [*few, *(dataclasses.replace(c, mask=mask) for c in own)]


def _counts(graph: Graph) -> Extra:
    """Inputs of a graph that takes for its mask how many tokens of a row its buffers hold, and those of each window."""
    windows = {0, *(s.window for s in graph.slots)}

    def counted(mask: Array, start: int, stop: int) -> Mapping[str, Array]:
        new = mask[:, start:stop].sum(axis=1)
        found: dict[str, Array] = {}
        for window in windows:
            past = min(start, window - 1) if window else start
            lengths, total = counts_of(window)
            found |= {lengths: (past + new).astype(np.int32), total: np.asarray(past + stop - start, np.int32)}
        return {k: x for k, x in found.items() if k in graph.inputs}

    return counted


def twin_of(model: Model) -> tuple[str, Graph] | str:
    """(what it is, its plain graph); or why there is none."""
    if isinstance(model.source, Program):
        return "it is a graph without a config that could be made smaller"
    for changes in _smaller(cast("Any", model.config)):
        try:
            graph = model.source.graph(dataclasses.replace(cast("Any", model.config), **changes), f32)
        except (MonographError, ArithmeticError, LookupError, TypeError, ValueError):
            continue  # These sizes do not go together in this family.
        size = sum(int(np.prod([d for d in v.shape if isinstance(d, int)])) for v in graph.params.values())
        if size <= MOST:
            said = ", ".join(f"{k} {v}" for k, v in changes.items() if isinstance(v, int))
            return f"a twin ({said})" if said else "the model itself", graph
    return "no sizes small enough to compute in f64 go together in it"


def _smaller(config: Any) -> Iterator[dict[str, Any]]:
    """Changes of a config, the strongest first: fewer layers of each kind, tokens, and heads of the same width."""
    fields: dict[str, Any] = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)} if config else {}
    numbers = {k: v for k, v in fields.items() if type(v) is int and v > 0}
    few = _fewer_layers(fields, numbers)
    few |= {k: min(numbers[k], most) for k, most in _FEW.items() if k in numbers}
    narrow = {k: min(numbers[k], WIDTH) for k in _WIDTHS if k in numbers}
    yield from ({**few, **narrow, **heads} for heads in _fewer_heads(numbers))
    yield {**few, **narrow}
    yield few
    yield {}


def _fewer_layers(fields: Mapping[str, Any], numbers: Mapping[str, int]) -> dict[str, Any]:
    """Two layers, or as many as show every kind that a list or a cycle names; lists as long."""
    given = ((k, cast("Sequence[Any]", v)) for k, v in fields.items() if isinstance(v, (list, tuple)))
    lists = {k: v for k, v in given if len(v) in _depths(numbers)}
    needed = [2, *(numbers[k] + 1 for k in _CYCLES if k in numbers)]
    for kinds in lists.values():
        needed.append(next(n for n in range(1, len(kinds) + 1) if set(map(str, kinds[:n])) == set(map(str, kinds))))
    few: dict[str, Any] = {k: min(numbers[k], max(needed)) for k in _DEPTHS if k in numbers}
    return few | {k: v[: max(needed)] for k, v in lists.items()}


def _depths(numbers: Mapping[str, int]) -> set[int]:
    return {numbers[k] for k in _DEPTHS if k in numbers}


def _fewer_heads(numbers: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Heads of the same width, as many to each head of keys and values, where the widths go into each other."""
    heads, dim = numbers.get("heads"), numbers.get("dim")
    if heads is None or dim is None:
        return
    groups = numbers.get("kv_heads", heads)
    shared = heads // groups if groups and heads % groups == 0 else 1
    for kept in (1, 2):
        few = shared * kept
        if few < 2 or heads % few or dim * few % heads or few > heads:
            continue
        free = type(numbers.get("head_dim")) is int
        changes = {"heads": few, "dim": min(dim, WIDTH) if free else dim * few // heads}
        changes |= {k: kept for k in ("kv_heads",) if k in numbers}
        changes |= {k: few for k in ("decoder_heads",) if numbers.get(k) == heads}
        yield changes
