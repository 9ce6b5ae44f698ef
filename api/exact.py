"""Whether two graphs over the same weights compute the same in f64: what 32 bits hide is seen, such as an epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .hard_inputs import Hard, Trial, hard_inputs, valid
from .ir.errors import MonographError
from .ir.graph import Graph, Value
from .ir.interpret import interpret
from .ir.tensors import Array, Tensor, held
from .ir.types import DType
from .original import Original, apart
from .passes.differential import EXACT, cases_of
from .passes.raising.check import BOUNDS
from .raised import Raised

MOST, FEW = 1 << 25, 1 << 20
"""Elements of the weights of the largest graph that is computed: as f64 they are 256 MB. Of more than FEW, only what
passes made is computed, and only with small weights: each layer that was raised was compared before it was made, and
ONNX Runtime runs the file with its own weights."""
TRIAL = Trial("holed", 3, 7)


@dataclass(frozen=True)
class Stage:
    """A graph, and how far its outputs may lie from those of the graph before it, as a share of the largest.

    Constants of a file are rounded to its type, of which raising makes what was meant; passes change no number.
    """

    name: str
    graph: Graph
    bound: float
    trials: tuple[Trial, ...] = (TRIAL,)


class Unchecked(Exception):
    """Why nothing was computed."""


def exact_difference(stages: Sequence[Stage], weights: Mapping[str, Tensor], fixed: Collection[str]) -> str:
    """What differs between a graph and the one before it, "" if nothing does.

    They are computed with the weights as they are, and so small that each epsilon of a norm counts. fixed: weights
    whose numbers a graph was made from, which stay. Raises Unchecked for graphs that are too large, and where NumPy
    cannot compute the first.
    """
    first = stages[0].graph
    size = sum(math.prod(d for d in v.shape if isinstance(d, int)) for v in first.params.values())
    if size > MOST:
        raise Unchecked(f"{size} weights are more than {MOST}, the most that are computed in f64")
    for trial in dict.fromkeys(t for s in stages for t in s.trials):
        hard = hard_inputs(first, trial)
        if hard is None:
            raise Unchecked("its inputs have sizes that are not known, or are too large")
        scales = dict.fromkeys((1.0, *(c.scale for c in cases_of(stages[-1].graph))))
        if size > FEW:
            stages, scales = stages[-2:], dict.fromkeys(list(scales)[-1:])
        for scale in scales:

            def read(name: str, scale: float = scale) -> Array:
                v = first.params[name]
                return _scaled(held(weights[name], v.type, name), v, 1.0 if name in fixed else scale)

            wrong = _apart([s for s in stages if trial in s.trials], hard, read)
            if wrong:
                return f"in f64, {trial}, weights times {scale:.2g}: {wrong}"
    return ""


def _apart(stages: Sequence[Stage], hard: Hard, params: Callable[[str], Array]) -> str:
    """What the outputs of a stage have other than those of the one before it."""
    try:
        wanted = interpret(stages[0].graph, hard.feeds, params, exact=True)
    except (MonographError, MemoryError) as e:
        raise Unchecked(f"it cannot be computed in f64: {str(e).splitlines()[0]}") from None
    for stage in stages[1:]:
        found = interpret(stage.graph, hard.feeds, params, exact=True)
        for name, expected in wanted.items():
            counts = valid(stage.graph.outputs[name], expected, hard)
            wrong, _ = apart(expected, np.asarray(found[name]), counts, stage.bound, least=0.0)
            if wrong:
                return f"{stage.name}: output {name}{wrong}"
        wanted = found
    return ""


def stages_of(graph: Graph, made: Raised, original: Original) -> list[Stage]:
    """An imported graph, what raising made of it, and what passes made of that, on inputs that the file takes."""
    taken = [e.trial for e in original.expected]
    trials = tuple(t for t in taken if t.mask == TRIAL.mask) or tuple(taken[:1])
    return [*raising_stages(graph, made.plain, trials), Stage("the passes", made.graph, EXACT, trials)]


def branch_stages(graph: Graph, made: Raised) -> list[Stage]:
    """A branch of an imported graph, which runs by itself, and what became of it."""
    return [*raising_stages(graph, made.plain), Stage("the passes", made.graph, EXACT)]


def raising_stages(graph: Graph, raised: Graph, trials: tuple[Trial, ...] = (TRIAL,)) -> list[Stage]:
    """An imported graph, and what raising made of it."""
    bound = max(BOUNDS[DType.f32], *(BOUNDS.get(v.dtype, 0.0) for v in graph.outputs.values()))
    return [Stage("the file", graph, 0.0, trials), Stage("raising", raised, bound, trials)]


def _scaled(x: Array, v: Value, scale: float) -> Array:
    """Floats times a scale, of the type of the weight."""
    if scale == 1.0 or v.type.encoding is not None or not v.dtype.is_float:
        return x
    return (x * np.asarray(scale, x.dtype)).astype(x.dtype)
