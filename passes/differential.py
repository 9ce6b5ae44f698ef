"""The differential check: does a graph still compute the same numbers, on the inputs that break fusions?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.interpret import Array, interpret, resolve
from ..ir.ops.linear import Embedding
from ..ir.ops.shape import Gather
from ..ir.slots import TARGETS, TOKENS, Growth, Slot
from ..ir.types import Dim, TensorType, bool_

MASKS = ("all-ones", "right-padded", "left-padded", "holed")


@dataclass(frozen=True)
class Case:
    """One hard input: kind of mask, batch size, tokens, and how many of them are in the cache beforehand."""

    mask: str
    batch: int
    length: int = 7
    past: int = 0
    scale: float = 1.0
    """Of weights: where they are small, so is what norms divide by, and their epsilon counts."""

    def __str__(self) -> str:
        after = f", decode after {self.past} of {self.length} tokens" if self.past else ""
        small = f", weights times {self.scale:g}" if self.scale != 1.0 else ""
        return f"{self.mask} mask, batch {self.batch}{after}{small}"


CASES = (
    Case("all-ones", 1),
    *(Case(mask, 3) for mask in MASKS),
    Case("all-ones", 1, past=6),
    *(Case(mask, 3, past=4) for mask in MASKS),
)
EXACT = 1e-9
"""How far outputs may lie apart in f64, as a share of the largest: sums in another order differ by 1e-15 of theirs, and
the largest of a sum may be a million times what is left of it."""
PLAIN_SCALE = 4e-3
"""Of weights of a graph whose norms do not say their epsilon: what is between the usual ones."""
LONGEST = 1100
"""Tokens of the longest rows that are computed to go beyond a window."""


def cases_of(graph: Graph) -> tuple[Case, ...]:
    """CASES, and those that a graph needs to show all that it says.

    Weights at the root of each epsilon, which is a millionth of what it is added to elsewhere; rows longer than each
    window, as far as they are at most LONGEST.
    """
    found: set[float] = {n.attributes["eps"] for n in graph if n.attributes.get("eps")}
    scales = sorted({e**0.5 for e in found}) or [PLAIN_SCALE]
    small = [Case(mask, 3, past=past, scale=s) for s in scales for mask, past in (("holed", 0), ("left-padded", 4))]
    windows: set[int] = {n.attributes["window"] for n in graph if n.attributes.get("window")}
    most = min((rows_indexed(v) for v in _positions(graph)), default=LONGEST)
    lengths = sorted({w + 2 for w in windows if CASES[0].length <= w + 2 <= min(LONGEST, most)})
    long = [Case("left-padded", 2, n, past) for n in lengths for past in (0, n // 2)]
    return (*CASES, *small, *long)


def _positions(graph: Graph) -> list[Value]:
    """Positions of tokens that choose from a table."""
    names = {s.positions for s in (TOKENS, TARGETS, graph.stream or TOKENS)}
    given = [v for k, v in graph.inputs.items() if k in names]
    return [v for v in given if any(isinstance(n.op, (Embedding, Gather)) for n in v.users)]


def attention_mask(kind: str, batch: int, length: int) -> Array:
    """i64 [batch, length] of one of MASKS; rows are padded by different amounts, the last row not at all."""
    mask = np.ones((batch, length), np.int64)
    for row in range(batch):
        amount = (batch - 1 - row) * (length - 2) // max(batch, 2) if batch > 1 else 0
        if kind == "right-padded":
            mask[row, length - amount :] = 0
        elif kind == "left-padded":
            mask[row, :amount] = 0
        elif kind == "holed":
            mask[row, [1 + row % (length - 2), length - 3]] = 0
    return mask


def random_params(graph: Graph, seed: int = 0, scale: float = 1.0) -> dict[str, Array]:
    """Random weights under which every part matters: norms near 1, matrices that keep the scale of activations.

    scale: of all of them.
    """
    rng = np.random.default_rng(seed)
    params: dict[str, Array] = {}
    for path, v in graph.params.items():
        shape = tuple(d if isinstance(d, int) else 1 for d in v.shape)
        if v.type.encoding is not None:
            params[path] = v.type.encoding.random(rng, shape, scale * shape[-1] ** -0.5)
            continue
        noise = rng.standard_normal(shape, np.float32)
        if len(shape) == 1:
            centre = 1.0 if v.init is not None and v.init.kind == "ones" else 0.0
            params[path] = (scale * (centre + 0.1 * noise)).astype(v.dtype.numpy)
        else:
            params[path] = (noise * (scale * shape[-1] ** -0.5)).astype(v.dtype.numpy)
    return params


Extra = Callable[[Array, int, int], Mapping[str, Array]]
"""(mask [B,T], first token, behind the last token) of a call -> inputs of a target that follow from them, by name."""


def difference(
    before: Graph,
    after: Graph,
    *,
    tolerance: float = EXACT,
    seed: int = 0,
    cases: Sequence[Case] | None = None,
    extra: Extra | None = None,
) -> str | None:
    """None if both graphs give the same outputs; else the case, the output, the numbers and the first bad layer.

    Outputs are compared in f64 at positions the mask keeps, relative to the largest expected value. A graph with a
    cache is run as prefill and decode and compared with the full forward of one without. cases: by default those of
    `before`. extra: gives inputs that only `after` has.
    """
    for case in cases_of(before) if cases is None else cases:
        params = random_params(before, seed, case.scale) | random_params(after, seed, case.scale)
        if case.past and not after.slots:
            continue
        expected, trail = _run(before, case, params, seed)
        found, found_trail = _run(after, case, params, seed, extra)
        hidden = sample_inputs(before, case, seed)  # `after` need not have a mask that nothing reads.
        lost = sorted(expected.keys() - found.keys())
        if lost:
            return f"case: {case}\noutput {lost[0]} is gone"
        for name in expected:
            wrong = _compare(name, expected[name], _valid(found[name], hidden), tolerance)
            if wrong:
                layer = _first_bad_layer(trail, found_trail, tolerance)
                return f"case: {case}\n{wrong}" + (f"\nfirst differing value: {layer}" if layer else "")
    return None


Trail = list[tuple[Node, Array]]


def _run(
    graph: Graph, case: Case, params: Mapping[str, Array], seed: int, extra: Extra | None = None
) -> tuple[dict[str, Array], Trail]:
    """Outputs at valid positions by name, and every intermediate value of the last call."""
    inputs = sample_inputs(graph, case, seed)
    mask = attention_mask(case.mask, case.batch, case.length)
    trail: Trail = []

    def observe(node: Node, results: tuple[Array, ...]) -> None:
        trail.extend((node, r) for r in results)

    if not graph.slots:
        outputs = interpret(graph, inputs, params, observe, exact=True)
        return {k: _valid(v, inputs) for k, v in outputs.items()}, trail
    remembered = {s.input: _empty(s.type, case.batch) for s in graph.slots}
    firsts = [s for s in graph.slots if s.first in graph.outputs]
    if firsts:
        first = interpret(graph, window(graph, inputs, 0, case.length) | remembered, params, exact=True)
        remembered |= {s.input: first[s.first] for s in firsts}
    own = graph.outputs.keys() - {name for s in graph.slots for name in (s.output, s.first)}
    start, parts = 0, list[dict[str, Array]]()
    for stop in [case.past, case.length] if case.past else [case.length]:
        trail.clear()
        given = window(graph, inputs, start, stop) | remembered
        if extra is not None:
            given |= extra(mask, start, stop)
        outputs = interpret(graph, given, params, observe, exact=True)
        remembered = {s.input: newest(outputs[s.output], s) for s in graph.slots}
        parts.append({k: v for k, v in outputs.items() if k in own})
        start = stop
    joined = {k: np.concatenate([p[k] for p in parts], axis=1) for k in parts[0]}
    shown = inputs if extra is None else {(graph.stream or TOKENS).mask: mask, **inputs}
    return {k: _valid(v, shown) for k, v in joined.items()}, trail


def newest(x: Array, slot: Slot) -> Array:
    """Of what a call gives for a slot, what the next one is to be brought: of a window all but its oldest token."""
    if slot.growth is not Growth.window or slot.axis is None:
        return x
    length = x.shape[slot.axis]
    return x.take(range(max(0, length - slot.window + 1), length), axis=slot.axis)


def window(graph: Graph, inputs: Mapping[str, Array], start: int, stop: int) -> dict[str, Array]:
    """Inputs for tokens start..stop of the graph's stream; its mask keeps the past."""
    stream = graph.stream or TOKENS
    over = {k for k, v in graph.inputs.items() if stream.length in v.type.symbols}
    now = {k: v[:, start:stop] if k in over else v for k, v in inputs.items()}
    return now | {k: inputs[k][:, :stop] for k in inputs.keys() & {stream.mask}}


def sample_inputs(graph: Graph, case: Case, seed: int = 0) -> dict[str, Array]:
    """Random inputs of the plain contract for a graph: ids inside their tables, masks of the case, true positions.

    Every length that has a name is that of the case.
    """
    rng = np.random.default_rng(seed + 1)
    shape = (case.batch, case.length)
    streams = (TOKENS, TARGETS, graph.stream or TOKENS)
    inputs: dict[str, Array] = {}
    for name, v in graph.inputs.items():
        if any(name == s.input for s in graph.slots):
            continue
        sizes = {s: counted(graph, s, case.length) for s in v.type.symbols} | {"B": case.batch}
        if name in {s.mask for s in streams}:
            inputs[name] = attention_mask(case.mask, *shape)
        elif name in {s.positions for s in streams}:
            mask = attention_mask(case.mask, *shape)
            inputs[name] = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        elif v.dtype.is_float:
            concrete = tuple(resolve(d, sizes) for d in v.shape)
            inputs[name] = rng.standard_normal(concrete).astype(v.dtype.numpy)
        else:
            most = 2 if v.dtype is bool_ else rows_indexed(v)
            concrete = tuple(resolve(d, sizes) for d in v.shape)
            inputs[name] = rng.integers(0, most, concrete).astype(v.dtype.numpy)
    return inputs


def counted(graph: Graph, symbol: str, length: int) -> int:
    """What a symbol is for axes of a length; of one that is a multiple of the symbol, as few as reach the length."""
    dims = [
        d for v in graph.inputs.values() for d in v.shape if isinstance(d, Dim) and d.symbols == frozenset((symbol,))
    ]
    steps = [resolve(d, {symbol: 1}) - resolve(d, {symbol: 0}) for d in dims]
    return -(-length // min((n for n in steps if n > 0), default=1))


def rows_indexed(ids: Value) -> int:
    """Number of rows of the smallest table that integer ids index."""
    tables = [node.value("table") for node in ids.users if isinstance(node.op, Embedding)]
    tables += [node.value("x") for node in ids.users if isinstance(node.op, Gather) and node["indices"] is ids]
    return min((t.shape[0] for t in tables if isinstance(t.shape[0], int)), default=10)


def _empty(type: TensorType, batch: int) -> Array:
    shape = tuple(batch if str(d) == "B" else 0 if isinstance(d, Dim) else d for d in type.shape)
    return np.zeros(shape, type.dtype.numpy)


def _valid(output: Array, inputs: Mapping[str, Array]) -> Array:
    """Zero what the mask hides: values at padding positions mean nothing."""
    mask = inputs.get(TARGETS.mask, inputs.get(TOKENS.mask))
    if mask is None or output.ndim < 2 or output.shape[:2] != mask.shape:
        return output
    return np.where(mask.reshape(*mask.shape, *[1] * (output.ndim - 2)) != 0, output, 0)


def _compare(name: str, expected: Array, found: Array, tolerance: float) -> str | None:
    if expected.shape != found.shape:
        return f"{name} has shape {list(found.shape)}, expected {list(expected.shape)}"
    if _close(expected, found, tolerance):
        return None
    gap = np.abs(expected.astype(np.float64) - found.astype(np.float64))
    at = np.unravel_index(np.argmax(np.where(np.isnan(gap), np.inf, gap)), gap.shape)
    where, largest = ",".join(map(str, at)), np.abs(expected).max()
    return f"{name}[{where}] is {found[at]!s}, expected {expected[at]!s} (largest expected {largest:.4g})"


def _close(expected: Array, found: Array, tolerance: float) -> bool:
    scale = float(np.abs(expected).max(initial=0.0))
    return bool(np.all(np.abs(expected.astype(np.float64) - found.astype(np.float64)) <= tolerance * scale))


def _first_bad_layer(before: Trail, after: Trail, tolerance: float) -> str | None:
    """The first layer whose last value is computed nowhere in the other graph, and where it was written."""
    ends: dict[str, tuple[Node, Array]] = {}
    for node, value in before:
        if value.dtype.kind == "f":
            ends.pop(node.location.scope, None)  # Layers in the order in which they end.
            ends[node.location.scope] = node, value
    made: dict[tuple[int, ...], list[Array]] = {}
    for _, a in after:
        made.setdefault(a.shape, []).append(a)
    for node, value in ends.values():
        if not any(_close(value, c, tolerance) for c in made.get(value.shape, ())):
            return f"{node.op.name} at {node.location}, shape {list(value.shape)}"
    return None
