"""The differential check: does a graph still compute the same numbers, on the inputs that break fusions?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..ir.graph import Graph, Node, Value
from ..ir.interpret import Array, interpret, resolve
from ..ir.types import Dim

_PASTS, _PRESENTS = ("past_key_values.", "past_state."), ("present.", "present_state.")
MASKS = ("all-ones", "right-padded", "left-padded", "holed")


@dataclass(frozen=True)
class Case:
    """One hard input: kind of mask, batch size, tokens, and how many of them are in the cache beforehand."""

    mask: str
    batch: int
    length: int = 7
    past: int = 0

    def __str__(self) -> str:
        after = f", decode after {self.past} of {self.length} tokens" if self.past else ""
        return f"{self.mask} mask, batch {self.batch}{after}"


CASES = (
    Case("all-ones", 1),
    *(Case(mask, 3) for mask in MASKS),
    Case("all-ones", 1, past=6),
    *(Case(mask, 3, past=4) for mask in MASKS),
)


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


def random_params(graph: Graph, seed: int = 0) -> dict[str, Array]:
    """Random weights under which every part matters: norms near 1, matrices that keep the scale of activations."""
    rng = np.random.default_rng(seed)
    params: dict[str, Array] = {}
    for path, v in graph.params.items():
        shape = tuple(d if isinstance(d, int) else 1 for d in v.shape)
        if v.type.encoding is not None:
            params[path] = v.type.encoding.random(rng, shape, shape[-1] ** -0.5)
            continue
        noise = rng.standard_normal(shape, np.float32)
        if len(shape) == 1:
            centre = 1.0 if v.init is not None and v.init.kind == "ones" else 0.0
            params[path] = (centre + 0.1 * noise).astype(v.dtype.numpy)
        else:
            params[path] = (noise * shape[-1] ** -0.5).astype(v.dtype.numpy)
    return params


def difference(
    before: Graph, after: Graph, *, tolerance: float = 1e-4, seed: int = 0, cases: tuple[Case, ...] = CASES
) -> str | None:
    """None if both graphs give the same outputs; else the case, the output, the numbers and the first bad layer.

    Outputs are compared at positions the mask keeps, relative to the largest expected value. A graph with a cache
    is run as prefill and decode and compared with the full forward of one without.
    """
    params = random_params(before, seed) | random_params(after, seed)
    for case in cases:
        if case.past and not _cached(after):
            continue
        expected, trail = _run(before, case, params, seed)
        found, found_trail = _run(after, case, params, seed)
        lost = sorted(expected.keys() - found.keys())
        if lost:
            return f"case: {case}\noutput {lost[0]} is gone"
        for name in expected:
            wrong = _compare(name, expected[name], found[name], tolerance)
            if wrong:
                layer = _first_bad_layer(trail, found_trail, tolerance)
                return f"case: {case}\n{wrong}" + (f"\nfirst differing value: {layer}" if layer else "")
    return None


def _cached(graph: Graph) -> bool:
    return any(name.startswith(_PASTS) for name in graph.inputs)


def _past(present: str) -> str:
    return present.replace("present.", "past_key_values.").replace("present_state.", "past_state.")


Trail = list[tuple[Node, Array]]


def _run(graph: Graph, case: Case, params: Mapping[str, Array], seed: int) -> tuple[dict[str, Array], Trail]:
    """Outputs at valid positions by name, and every intermediate value of the last call."""
    inputs = sample_inputs(graph, case, seed)
    trail: Trail = []

    def observe(node: Node, results: tuple[Array, ...]) -> None:
        trail.extend((node, r) for r in results)

    if not _cached(graph):
        outputs = interpret(graph, inputs, params, observe)
        return {k: _valid(v, inputs) for k, v in outputs.items()}, trail
    pasts = {k: _empty(v, case.batch) for k, v in graph.inputs.items() if k.startswith(_PASTS)}
    if any(k.startswith("initial_state.") for k in graph.outputs):
        first = interpret(graph, _window(inputs, 0, case.length) | pasts, params)
        pasts |= {k.replace("initial_", "past_"): v for k, v in first.items() if k.startswith("initial_state.")}
    start, parts = 0, list[dict[str, Array]]()
    for stop in [case.past, case.length] if case.past else [case.length]:
        trail.clear()
        outputs = interpret(graph, _window(inputs, start, stop) | pasts, params, observe)
        pasts = {_past(k): v for k, v in outputs.items() if k.startswith(_PRESENTS)}
        parts.append({k: v for k, v in outputs.items() if not k.startswith((*_PRESENTS, "initial_state."))})
        start = stop
    joined = {k: np.concatenate([p[k] for p in parts], axis=1) for k in parts[0]}
    return {k: _valid(v, inputs) for k, v in joined.items()}, trail


def _window(inputs: Mapping[str, Array], start: int, stop: int) -> dict[str, Array]:
    """Inputs for tokens start..stop; a mask over keys keeps its past."""
    masks = ("attention_mask", "decoder_attention_mask")
    encoder = "decoder_input_ids" in inputs
    kept = ("input_ids", "attention_mask", "position_ids", "token_type_ids") if encoder else ()
    return {k: v if k in kept else v[:, :stop] if k in masks else v[:, start:stop] for k, v in inputs.items()}


def sample_inputs(graph: Graph, case: Case, seed: int = 0) -> dict[str, Array]:
    """Random inputs of the plain contract for a graph: ids inside their tables, masks of the case, true positions."""
    rng = np.random.default_rng(seed + 1)
    shape = (case.batch, case.length)
    inputs: dict[str, Array] = {}
    for name, v in graph.inputs.items():
        if name.startswith(_PASTS):
            continue
        if name.endswith("attention_mask"):
            inputs[name] = attention_mask(case.mask, *shape)
        elif name.endswith("position_ids"):
            mask = attention_mask(case.mask, *shape)
            inputs[name] = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        elif v.dtype.is_float:
            sizes = {"B": case.batch, "S": case.length, "U": case.length}
            concrete = tuple(resolve(d, sizes) for d in v.shape)
            inputs[name] = rng.standard_normal(concrete).astype(v.dtype.numpy)
        else:
            inputs[name] = rng.integers(0, _rows(v), shape)
    return inputs


def _rows(ids: Value) -> int:
    """Number of rows of the smallest table that integer ids index."""
    tables = [node.operands[1 - i] for node, i in ids.uses if node.op.name in ("embedding", "gather")]
    return min((t.shape[0] for t in tables if t is not None and isinstance(t.shape[0], int)), default=10)


def _empty(v: Value, batch: int) -> Array:
    shape = tuple(batch if str(d) == "B" else 0 if isinstance(d, Dim) else d for d in v.shape)
    return np.zeros(shape, v.dtype.numpy)


def _valid(output: Array, inputs: Mapping[str, Array]) -> Array:
    """Zero what the mask hides: values at padding positions mean nothing."""
    mask = inputs.get("decoder_attention_mask", inputs.get("attention_mask"))
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
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
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
