"""The check before a rewrite: old and new value computed in f64 on hard inputs, from the values both are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count

import numpy as np

from ...ir.errors import MonographError
from ...ir.graph import Graph, Node, Value
from ...ir.interpret import Array, evaluate_node, widened_array
from ...ir.ops.attention import Attention
from ...ir.types import Dim, DType, bool_, substitute
from ...ir.value import NOWHERE
from ..differential import LONGEST, MASKS, attention_mask, counted, rows_indexed
from ..past_inputs import past_symbols, total_symbols
from .constants import Reader

ORDERS = (1, -1, 0, 8)
"""Of sizes that may differ: where a graph reads a part of an axis, that one is the shorter; or both must be equal; or
sizes that no input has are so many times longer, as indices into what they are of are made of the others."""

FARTHEST = 50
"""Positions are drawn below this."""

BOUNDS = {DType.f64: 1e-9, DType.f32: 4 * FARTHEST * 2**-24, DType.f16: 2e-3, DType.bf16: 4e-3}
"""How far results may lie apart, as a share of the largest of their row.

Both are computed in f64; they differ by the constants that a file has rounded to its type, of which an angle is a
multiple by a position. Four of them may add up. In 16 bits constants have two to three digits, and no multiple by a
position is taken to be equal.
"""
LEAST = 1e-4
"""What counts as the largest of a row, as a share of the largest of all, where a row has smaller numbers only."""

SPREAD = -7.0, 1.0
"""Powers of ten between which the sizes of rows are drawn: below, at and above the root of any epsilon."""
PLAIN = 1.5
"""Standard deviation of other draws: of a product of two and a scale of one by the root of the width, that is 2."""

LARGEST = 1 << 24
"""Elements of one value beyond which inputs are not drawn."""


@dataclass(frozen=True)
class Trial:
    """One hard input: kind of mask, batch size, and a length; symbols beyond the first get lengths of their own.

    spread: rows of what both sides read differ in size by powers of ten.
    """

    mask: str
    batch: int
    length: int
    seed: int
    spread: bool = False

    def __str__(self) -> str:
        return f"{self.mask} mask, batch {self.batch}, length {self.length}"


TRIALS = (
    Trial("all-ones", 1, 7, 0),
    *(Trial(mask, 3, 7, i + 1) for i, mask in enumerate(MASKS)),
    Trial("left-padded", 3, 4, 9),
    Trial("holed", 3, 8, 10, spread=True),
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
        *,
        numbers: bool = False,
    ) -> str | None:
        """None if both are equal, within the bound of their type, on all trials; else where and by how much.

        cuts: values that both are computed from; they get random numbers, as do products of matrices and layers that
        are not `allowed`. alive: given what computes a value, values
        to compute `new` from once more, whose result is not 0 where a number counts. numbers: only elements of `old`
        that are one count.
        """
        place = str(NOWHERE if old.producer is None else old.producer.location)
        if place in self.without:
            return "it was left out: with it, the outputs of the graph were others"
        inside = _between(old, cuts, allowed) | _between(new, cuts, allowed)
        ran = 0
        for trial in (*self.trials, *_beyond(inside)):
            try:
                run, expected = self._expected(old, trial, inside, cuts)
                found = run(new)
                counts = ~np.isnan(expected) if numbers else np.ones(expected.shape, np.bool_)
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

    @cached_property
    def masks(self) -> list[Value]:
        """Inputs that may be masks."""
        given = self.check.graph.inputs.values()
        return [v for v in given if v.rank >= 2 and not v.dtype.is_float and rows_indexed(v) == 10]

    def __call__(self, v: Value) -> Array:
        pending = [v]
        while pending:
            top = pending[-1]
            node = top.producer
            if top in self.known:
                pending.pop()
            elif node is None or top in self.cuts or node not in self.inside:
                drawn = self.drawn(top)
                self.known[top] = drawn if top.type.encoding is not None else widened_array(drawn)
            elif missing := [x for x in node.arguments if x not in self.known]:
                pending += missing
            else:
                self.compute(node)
        return self.known[v]

    def compute(self, node: Node) -> None:
        operands = [None if x is None else self.known[x] for x in node.operands]
        try:
            results = evaluate_node(node, operands, self.dims, exact=True)
        except (ValueError, IndexError) as e:
            raise Unbound(str(e)) from None
        self.known.update(zip(node.outputs, results, strict=True))

    def magnitudes(self, shape: tuple[int, ...]) -> Array:
        """A size for each row, evenly from the least to the largest power, in an order that is drawn."""
        rows = shape[:-1]
        powers = np.linspace(*SPREAD, max(1, math.prod(rows)))[: math.prod(rows)]
        return 10.0 ** self.rng.permutation(powers).reshape(*rows, 1) if shape else np.ones(())

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
            drawn = PLAIN * self.rng.standard_normal(concrete)
            return drawn * self.magnitudes(concrete) if self.trial.spread and not v.is_param else drawn
        if v in self.cuts and v.dtype != bool_:
            rows = rows_indexed(v)
            return self.rng.integers(0, FARTHEST if rows == 10 else min(rows, FARTHEST), concrete).astype(v.dtype.numpy)
        if v.producer is None and not v.is_param and v.rank >= 2 and rows_indexed(v) == 10:
            mask = _masked(self.trial, concrete, self.rng).astype(v.dtype.numpy)
            # Of several masks, each hides other tokens: what is read as one of them must not be another one.
            return np.roll(mask, self.masks.index(v), axis=0) if v in self.masks else mask
        most = 2 if v.dtype == bool_ else max(1, rows_indexed(v))
        return self.rng.integers(0, most, concrete).astype(v.dtype.numpy)


def _beyond(inside: Collection[Node]) -> list[Trial]:
    """Trials whose rows are longer than the windows of attentions, where their scores are not too many."""
    attentions = [n for n in inside if isinstance(n.op, Attention) and n.attributes["window"] is not None]
    sizes = sorted({(int(n.attributes["window"]) + 2, n.value("q").shape[2]) for n in attentions}, key=str)
    small = [n for n, heads in sizes if n <= LONGEST and isinstance(heads, int) and n * n * heads <= LARGEST]
    return [Trial("left-padded", 1, n, n) for n in dict.fromkeys(small)]


def _masked(trial: Trial, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """A mask [B, ..., T] of the trial's kind, the same for all axes between; of two axes of tokens, random."""
    batch, *between, length = shape
    if between and between[-1] != 1:
        drawn = (rng.random(shape) < 0.7) | (trial.mask == "all-ones")
        drawn[0, ..., -1, :] &= trial.mask != "holed"  # A row without any key.
        return drawn
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
    more: Iterator[int] = count(0, min(abs(order), 1))
    found: dict[str, int] = {}
    for s in sorted(names, reverse=order < 0):
        found[s] = trial.batch if s in leading else counted(graph, s, trial.length) + next(more)
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
    """Where numbers lie apart by more than a share of the largest of their row (the last axis), and by how much."""
    if expected.shape != found.shape:
        return f"the shape is {list(found.shape)}, expected {list(expected.shape)}"
    a, b = (np.where(counts, x, 0).astype(np.float64) for x in (expected, found))
    sizes = np.where(np.isfinite(a), np.abs(a), 0.0)
    rows = sizes.max(axis=-1, keepdims=True, initial=0.0) if a.ndim else sizes
    allowed = np.broadcast_to(bound * np.maximum(rows, LEAST * sizes.max(initial=0.0)), a.shape)
    with np.errstate(invalid="ignore"):
        gap = np.where(a == b, 0.0, np.abs(a - b))
    if bool(np.all(gap <= allowed)):
        return None
    at = np.unravel_index(np.argmax(np.where(np.isnan(gap), np.inf, gap - allowed)), gap.shape)
    place = ",".join(map(str, at))
    return f"element [{place}] is {b[at]:.6g}, expected {a[at]:.6g} (bound {allowed[at]:.2g})"
