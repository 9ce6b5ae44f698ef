"""Inputs on which rewrites break, for a graph of any names and types: padded and holed masks, batches, lengths."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from .ir.graph import Graph, Value
from .ir.ops.elementwise import Cast
from .ir.ops.linear import Embedding
from .ir.ops.shape import Expand, Gather, Reshape, Slice, Transpose
from .ir.tensors import Array
from .ir.types import Dim, DimLike, bool_, substitute
from .passes.differential import MASKS, attention_mask, counted
from .passes.past_inputs import past_symbols, total_symbols

PAST = 5
"""Tokens of a past."""
LARGEST = 1 << 26
"""Elements of an input beyond which it is not made."""
_MOVES = (Cast, Reshape, Transpose, Expand, Slice)


@dataclass(frozen=True)
class Trial:
    """One set of inputs.

    joined: all axes that are no batch have one length, as far as nothing else is said; else each is longer than the one
    before, by `apart`. flags: what single truth values are, which choose a branch.
    """

    mask: str
    batch: int
    length: int
    joined: bool = False
    apart: int = 1
    flags: bool = True

    def __str__(self) -> str:
        return f"{self.mask} mask, batch {self.batch}, length {self.length}{'' if self.flags else ', flags off'}"


TRIALS = (
    Trial("all-ones", 1, 7),
    *(Trial(mask, 3, 7) for mask in MASKS),
    Trial("left-padded", 3, 4),
    Trial("right-padded", 3, 12),
)
IMAGES = (*range(8, 64, 4), *range(64, 257, 16), *(32 * n for n in (9, 10, 12, 14, 16, 20, 24, 28, 32)), 336, 378, 518)
"""Sizes to try of images, of which no file says how large they may be."""


@dataclass
class Hard:
    """Inputs of one trial by name.

    past: tokens before the new ones. kept: the masks [B,T] among them, with the axis of tokens as the graph writes it.
    """

    past: int = 0
    feeds: dict[str, Array] = field(default_factory=dict[str, Array])
    kept: list[tuple[DimLike, Array]] = field(default_factory=list[tuple[DimLike, Array]])


def hard_inputs(graph: Graph, trial: Trial) -> Hard | None:
    """Inputs of a graph for a trial; None where they would be too large, or a size is not known."""
    sizes = _sizes(graph, trial)
    rng = np.random.default_rng(trial.batch * 100 + trial.length)
    made = Hard(PAST if past_symbols(graph) else 0)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, v in graph.inputs.items():
        shape = tuple(d for d in substitute(v.shape, sizes) if isinstance(d, int))
        if len(shape) < v.rank or math.prod(shape) > LARGEST or any(d < 0 for d in shape):
            return None
        shapes[name] = shape
    for name in sorted(graph.inputs, key=lambda n: not is_mask(n, graph.inputs[n])):
        v = graph.inputs[name]
        made.feeds[name] = _drawn(name, v, shapes[name], trial, made, rng)
        if is_mask(name, v) and v.rank == 2:
            made.kept.append((v.shape[1], made.feeds[name] != 0))
    return made


def open_images(graph: Graph) -> bool:
    """Whether a graph reads something like images, of a size that is not said: floats along three axes or more."""
    inputs = graph.inputs.values()
    return any(v.dtype.is_float and v.rank > 2 and any(map(_symbols, v.shape[1:])) for v in inputs)


def both_ways(graph: Graph, trials: tuple[Trial, ...] = TRIALS) -> tuple[Trial, ...]:
    """Trials, and of a graph with single truth values the same with these off."""
    flags = any(v.dtype is bool_ and v.rank < 2 for v in graph.inputs.values())
    return (*trials, *(replace(t, flags=False) for t in trials)) if flags else trials


def valid(output: Value, found: Array, hard: Hard) -> Array:
    """Which elements of an output mean something: those at tokens that a mask keeps; all where no axis is of tokens."""
    for size, kept in hard.kept:
        batch, length = kept.shape
        if found.ndim < 2 or found.shape[0] != batch:
            continue
        for axis in (1, 2) if found.ndim == 4 else (1,):
            here = output.shape[axis]
            if isinstance(here, int) != isinstance(size, int) or found.shape[axis] > length:
                continue
            newest = kept[:, length - found.shape[axis] :]
            shape = (batch, *[1] * (axis - 1), found.shape[axis], *[1] * (found.ndim - axis - 1))
            return np.broadcast_to(newest.reshape(shape), found.shape)
    return np.ones(found.shape, np.bool_)


def is_mask(name: str, v: Value) -> bool:
    """Whether an input says which tokens count: by its name, or integers by pairs that choose from no table."""
    if "mask" in name.lower():
        return v.rank >= 1
    named = any(word in name.lower() for word in ("pos", "type", "segment", "ids"))
    return v.rank >= 2 and not v.dtype.is_float and not named and rows_of(v) is None


def rows_of(v: Value) -> int | None:
    """Rows of the smallest table that integers choose from, also after casts and rearrangements; None: of none."""
    waiting, seen = [v], {v}
    found: list[int] = []
    while waiting:
        x = waiting.pop()
        for node in x.users:
            if isinstance(node.op, Embedding) and node["ids"] is x:
                rows = node.value("table").shape[0]
            elif isinstance(node.op, Gather) and node["indices"] is x:
                axis: int = node.attributes["axis"]
                rows = node.value("x").shape[axis]
            elif isinstance(node.op, _MOVES) and node.output not in seen:
                seen.add(node.output)
                waiting.append(node.output)
                continue
            else:
                continue
            if isinstance(rows, int):
                found.append(rows)
    return min(found, default=None)


def _sizes(graph: Graph, trial: Trial) -> dict[str, int]:
    """A number for every symbol: the batch, a past, what a mask counts, or a length."""
    inputs = graph.inputs
    past = set(past_symbols(graph).values())
    totals = total_symbols(graph)
    batch = {s for v in inputs.values() if v.rank >= 2 for s in _symbols(v.shape[0])} - past
    masked = {s for n, v in inputs.items() if is_mask(n, v) for d in v.shape[1:] for s in _symbols(d)}
    plain = {s for n, v in inputs.items() if not is_mask(n, v) for d in v.shape for s in _symbols(d)}
    sizes: dict[str, int] = {}
    others = 0  # Lengths of which nothing is known are not the same.
    for s in sorted(past | batch | masked | plain):
        if s in batch:
            sizes[s] = trial.batch
        elif s in past:
            sizes[s] = PAST
        elif s in totals or (past and s in masked - plain):
            sizes[s] = PAST + trial.length
        else:
            more = 0 if past or trial.joined else others
            sizes[s] = max(counted(graph, s, trial.length + more * trial.apart), counted(graph, s, trial.length) + more)
            others += 1
    return sizes


def _symbols(d: DimLike) -> frozenset[str]:
    return d.symbols if isinstance(d, Dim) else frozenset()


def _drawn(name: str, v: Value, shape: tuple[int, ...], trial: Trial, made: Hard, rng: np.random.Generator) -> Array:
    lowered = name.lower()
    if v.dtype is bool_ and v.rank < 2:
        return np.full(shape, trial.flags)
    if is_mask(name, v):
        return _mask(v, shape, trial, rng)
    if v.dtype.is_float:
        return rng.standard_normal(shape).astype(v.dtype.numpy)
    if v.dtype is bool_:
        return rng.random(shape) < 0.5
    if v.rank == 0:
        return np.asarray(1, v.dtype.numpy)
    rows = rows_of(v)
    if "pos" in lowered:
        return _positions(shape, made, rows).astype(v.dtype.numpy)
    if "type" in lowered or "segment" in lowered:
        return rng.integers(0, min(rows or 2, 2), shape).astype(v.dtype.numpy)
    if rows is None and v.rank == 1:
        return np.full(shape, trial.length if "len" in lowered else 1, v.dtype.numpy)
    return rng.integers(0, rows or 2, shape).astype(v.dtype.numpy)


def _mask(v: Value, shape: tuple[int, ...], trial: Trial, rng: np.random.Generator) -> Array:
    """A mask of the trial's kind [B,..,T]; over pairs of tokens a random one, in which one row keeps nothing."""
    length, batch = shape[-1], shape[0] if len(shape) > 1 else 1
    between = shape[1:-1]
    if between and between[-1] != 1:
        kept = (rng.random(shape) < 0.7) | (trial.mask == "all-ones")
        kept[0, ..., -1, :] &= trial.mask != "holed"
    else:
        plain = attention_mask(trial.mask, batch, length) if length >= 4 else np.ones((batch, length), np.int64)
        kept = np.broadcast_to(plain.reshape(batch, *[1] * len(between), length), (batch, *between, length)) != 0
        kept = kept if len(shape) > 1 else kept[0]
    if v.dtype.is_float and v.rank > 2:
        return np.where(kept, 0.0, v.dtype.lowest).astype(v.dtype.numpy)
    return kept.astype(v.dtype.numpy)


def _positions(shape: tuple[int, ...], made: Hard, rows: int | None) -> Array:
    """Positions of tokens: as the mask counts them, or one after the other."""
    length = shape[-1]
    whole = next((kept for _, kept in made.kept if len(shape) == 2 and kept.shape[0] == shape[0]), None)
    if whole is not None and whole.shape[1] >= length:
        found = np.maximum(np.cumsum(whole, axis=1) - 1, 0)[:, whole.shape[1] - length :]
    else:
        found = np.broadcast_to(made.past + np.arange(length), shape)
    return np.minimum(found, (rows or 1 << 30) - 1)
