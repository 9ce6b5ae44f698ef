"""The check before a rewrite: old and new value computed in NumPy on hard inputs, from the values both are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count

import numpy as np

from ...ir.errors import MonographError
from ...ir.graph import Graph, Node, Value
from ...ir.interpret import Array, evaluate
from ...ir.types import Dim, DType, bool_, f32, substitute
from ...ir.value import NOWHERE, type_of
from ..differential import MASKS, attention_mask, rows_indexed
from ..past_inputs import past_symbols, total_symbols
from .constants import Reader

HALVES = (DType.f16, DType.bf16)
"""Types that are compared in f32: what they round away would hide a factor of 0.98."""

BOUNDS = {DType.f64: 1e-6, DType.f32: 1e-4, **dict.fromkeys(HALVES, 1e-4)}
"""How far results may lie apart, as a share of the largest: the arithmetic of a sum of a few hundred terms."""

ORDERS = (1, -1, 0, 8)
"""Of sizes that may differ: where a graph reads a part of an axis, that one is the shorter; or both must be equal; or
sizes that no input has are so many times longer, as indices into what they are of are made of the others."""

FARTHEST = 50
"""Positions are drawn below this."""

LARGEST = 1 << 24
"""Elements of one value beyond which inputs are not drawn."""


@dataclass(frozen=True)
class Trial:
    """One hard input: kind of mask, batch size, and a length; symbols beyond the first get lengths of their own."""

    mask: str
    batch: int
    length: int
    seed: int

    def __str__(self) -> str:
        return f"{self.mask} mask, batch {self.batch}, length {self.length}"


TRIALS = (
    Trial("all-ones", 1, 7, 0),
    *(Trial(mask, 3, 7, i + 1) for i, mask in enumerate(MASKS)),
    Trial("left-padded", 3, 4, 9),
)


@dataclass
class Check:
    """Compares values of one graph. read: arrays of parameters, where they are known.

    without: places at which nothing may be replaced. accepted: gets those at which something was found equal.
    """

    graph: Graph
    read: Reader | None = None
    trials: tuple[Trial, ...] = TRIALS
    without: Collection[str] = ()
    accepted: list[str] = field(default_factory=list[str])

    def difference(
        self,
        old: Value,
        new: Value,
        cuts: Collection[Value],
        allowed: Collection[Node],
        alive: Callable[[Run], Mapping[Value, Array]] | None = None,
    ) -> str | None:
        """None if both are equal, within the bound of their type, on all trials; else where and by how much.

        cuts: values that both are computed from; they get random numbers, as do products of matrices and layers that
        are not `allowed`. alive: given what computes a value, values
        to compute `new` from once more, whose result is not 0 where a number counts.
        """
        place = str(NOWHERE if old.producer is None else old.producer.location)
        if place in self.without:
            return "it was left out: with it, the outputs of the graph were others"
        inside = _between(old, cuts, allowed) | _between(new, cuts, allowed)
        ran = 0
        for trial in self.trials:
            try:
                run, expected = self._expected(old, trial, inside, cuts)
                found = run(new)
                counts = np.ones(expected.shape, np.bool_)
                if alive is not None:
                    counts = run.again(new, alive(run)) != 0
            except Unbound:
                continue
            except MonographError as e:
                return f"{trial}: it cannot be computed: {e.what}"
            ran += 1
            wrong = _apart(expected, found, counts, BOUNDS.get(old.dtype, 0.0))
            if wrong:
                return f"{trial}: {wrong}"
        if not ran:
            return "no input is small enough to compare on"
        self.accepted.append(place)
        return None

    @cached_property
    def _counts(self) -> tuple[frozenset[str], frozenset[str]]:
        """Symbols that count tokens of a past, and those that count these and the new ones."""
        return frozenset(past_symbols(self.graph).values()), total_symbols(self.graph)

    def _behind_pasts(self, dims: dict[str, int]) -> dict[str, int]:
        """Sizes with which a mask over all tokens covers the longest past and the new ones."""
        pasts, totals = self._counts
        if not totals:
            return dims
        new = max((n for s, n in dims.items() if s not in pasts | totals), default=1)
        return dims | dict.fromkeys(totals, max(dims[s] for s in pasts) + new)

    def _expected(
        self, old: Value, trial: Trial, inside: Collection[Node], cuts: Collection[Value]
    ) -> tuple[Run, Array]:
        """A run in which the old value can be computed, and what it is: by the first order of sizes that it takes."""
        first: Exception | None = None
        for order in ORDERS:
            run = Run(self, trial, inside, cuts, self._behind_pasts(sizes(self.graph, trial, inside, order)))
            try:
                return run, run(old)
            except (Unbound, MonographError) as e:
                first = first or e
        assert first is not None
        raise first


class Unbound(Exception):
    """A trial whose sizes this graph cannot have."""


class Run:
    """Values of a graph under one trial, computed when asked for."""

    def __init__(
        self, check: Check, trial: Trial, inside: Collection[Node], cuts: Collection[Value], dims: dict[str, int]
    ) -> None:
        self.check, self.trial, self.inside, self.cuts, self.dims = check, trial, inside, set(cuts), dims
        self.rng = np.random.default_rng(trial.seed)
        self.known: dict[Value, Array] = {}

    def __call__(self, v: Value) -> Array:
        pending = [v]
        while pending:
            top = pending[-1]
            node = top.producer
            if top in self.known:
                pending.pop()
            elif node is None or top in self.cuts or node not in self.inside:
                drawn = self.drawn(top)
                self.known[top] = drawn.astype(np.float32) if top.dtype in HALVES else drawn
            elif missing := [x for x in node.arguments if x not in self.known]:
                pending += missing
            else:
                self.compute(node)
        return self.known[v]

    def compute(self, node: Node) -> None:
        operands = [None if x is None else self.known[x] for x in node.operands]
        attributes = {k: f32 if isinstance(x, DType) and x in HALVES else x for k, x in node.attributes.items()}
        try:
            results = evaluate(node.op, operands, attributes, self.dims, [type_of(x) for x in node.operands])
        except (ValueError, IndexError) as e:
            raise Unbound(str(e)) from None
        self.known.update(zip(node.outputs, results, strict=True))

    def again(self, v: Value, given: Mapping[Value, Array]) -> Array:
        """v, computed anew from other numbers of some values."""
        run = Run(self.check, self.trial, self.inside, self.cuts, self.dims)
        run.known = {k: x for k, x in self.known.items() if k.producer is None or k not in self.inside_outputs()}
        run.known |= given
        return run(v)

    def inside_outputs(self) -> set[Value]:
        return {v for node in self.inside for v in node.outputs}

    def drawn(self, v: Value) -> Array:
        """Numbers for a value that both sides read: of a mask by the trial, of indices within their table."""
        shape = substitute(v.shape, self.dims)
        concrete = tuple(d for d in shape if isinstance(d, int))
        if len(concrete) < len(shape) or math.prod(concrete) > LARGEST:
            raise Unbound
        if v.type.encoding is not None:
            return v.type.encoding.random(self.rng, concrete, 1.0)
        read = self.check.read
        if v.is_param and read is not None and (not v.dtype.is_float or v.name in read.names):
            return read.read(v.name)
        if v.dtype.is_float:
            return self.rng.standard_normal(concrete).astype(v.dtype.numpy)
        if v in self.cuts and v.dtype != bool_:
            rows = rows_indexed(v)
            return self.rng.integers(0, FARTHEST if rows == 10 else min(rows, FARTHEST), concrete).astype(v.dtype.numpy)
        if v.producer is None and not v.is_param and v.rank >= 2 and rows_indexed(v) == 10:
            return _masked(self.trial, concrete, self.rng).astype(v.dtype.numpy)
        most = 2 if v.dtype == bool_ else max(1, rows_indexed(v))
        return self.rng.integers(0, most, concrete).astype(v.dtype.numpy)


def _masked(trial: Trial, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """A mask [B, ..., T] of the trial's kind, the same for all axes between; of two axes of tokens, random."""
    batch, *between, length = shape
    if between and between[-1] != 1:
        drawn = rng.random(shape) < 0.7
        return drawn | (trial.mask == "all-ones")
    if length < 4:
        return np.ones(shape, np.int64)
    mask = attention_mask(trial.mask, batch, length)
    return np.broadcast_to(mask.reshape(batch, *[1] * len(between), length), shape)


def sizes(graph: Graph, trial: Trial, inside: Collection[Node], order: int = 1) -> dict[str, int]:
    """A number for every symbol: the batch for what leads inputs of rank 2 and more, else lengths of their own. order:
    one of ORDERS, +-1 for lengths that grow or shrink along the names, 0 for one length."""
    leading = {s for v in graph.inputs.values() if v.rank >= 2 for s in _symbols(v.shape[0])}
    given = {s for v in graph.inputs.values() for s in v.type.symbols}
    names = given | {s for node in inside for v in (*node.outputs, *node.arguments) for s in v.type.symbols}
    lengths: Iterator[int] = count(trial.length, min(abs(order), 1))
    found = {s: trial.batch if s in leading else next(lengths) for s in sorted(names, reverse=order < 0)}
    return {s: n if s in given or order < 2 else n * order for s, n in found.items()}


def _symbols(d: object) -> frozenset[str]:
    return d.symbols if isinstance(d, Dim) else frozenset()


def _between(v: Value, cuts: Collection[Value], allowed: Collection[Node]) -> set[Node]:
    """Nodes that a value is computed from, down to `cuts` and to products of matrices and layers not in `allowed`."""
    found: set[Node] = set()
    waiting = [v]
    while waiting:
        x = waiting.pop()
        node = x.producer
        if x in cuts or node is None or node in found or (node not in allowed and _costly(node)):
            continue
        found.add(node)
        waiting += node.arguments
    return found


def _costly(node: Node) -> bool:
    return node.op.heavy or (node.op.body is not None and any(v.dtype.is_float for v in node.outputs))


def _apart(expected: Array, found: Array, counts: Array, bound: float) -> str | None:
    if expected.shape != found.shape:
        return f"the shape is {list(found.shape)}, expected {list(expected.shape)}"
    a, b = (np.where(counts, x, 0).astype(np.float64) for x in (expected, found))
    scale = max(1.0 if bound else 0.0, float(np.abs(a[np.isfinite(a)]).max(initial=0.0)))
    with np.errstate(invalid="ignore"):
        gap = np.abs(a - b)
    if bool(np.all(gap <= bound * scale)):
        return None
    at = np.unravel_index(np.argmax(np.where(np.isnan(gap), np.inf, gap)), gap.shape)
    place = ",".join(map(str, at))
    return f"element [{place}] is {b[at]:.6g}, expected {a[at]:.6g} (bound {bound * scale:.2g})"
