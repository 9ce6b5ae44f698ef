"""Stored tables of sines and cosines: rows of angles that grow with the position, computed instead of looked up."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ...ir import ops
from ...ir.graph import Graph, Node, Value
from ...ir.interpret import Array
from ...ir.ops.linear import Embedding
from ...ir.ops.shape import Gather, Slice
from ...ir.types import DimLike, f32
from .check import Check
from .constants import Reader, computed_array
from .unread import erase_unread

FEWEST = 4
"""Positions that a table needs before its frequencies are believed."""


def compute_tables(graph: Graph, check: Check, read: Reader | None) -> list[tuple[Value, Value]]:
    """Replace rows taken of tables [positions, channels] of sines and cosines by these. Gives (rows, what they became).

    Only where both are taken for the same positions. A table is stored, or computed from what is.
    """
    found: dict[Value, list[tuple[Node, list[tuple[bool, Array]]]]] = {}
    ranges: dict[tuple[DimLike, DimLike], Value] = {}
    for node in [n for n in graph if isinstance(n.op, (Gather, Embedding, Slice))]:
        source = _source(node)
        if source is None:
            continue
        before = frozenset[str]() if read is None else frozenset(read.names)
        table = computed_array(source, read)
        blocks = None if table is None else _blocks(table)
        if blocks is None:
            if read is not None:
                read.names &= before  # Their numbers decide nothing.
            continue
        found.setdefault(_ids(graph, node, ranges), []).append((node, blocks))
    replaced: list[tuple[Value, Value]] = []
    angles: dict[tuple[Value, bytes], Value] = {}
    for ids, nodes in found.items():
        if len({cosine for _, blocks in nodes for cosine, _ in blocks}) == 2:
            sines = [rates for _, blocks in nodes for cosine, rates in blocks if not cosine]
            for node, blocks in nodes:
                replaced += _computed(graph, node, ids, blocks, sines, check, angles)
    for ids in ranges.values():
        if not ids.uses:
            erase_unread(graph, ids)
    return replaced


def put_tables_back(graph: Graph, replaced: list[tuple[Value, Value]]) -> None:
    """Take rows of their table again where something else than rotations reads them, such as a sum with embeddings."""
    for rows, computed in replaced:
        if computed.uses or graph.is_output(computed):
            graph.replace(computed, rows)
            erase_unread(graph, computed)


def _source(node: Node) -> Value | None:
    """The table of which a node takes rows, by numbers or all from one on; None if it takes anything else."""
    source = node.value("table") if isinstance(node.op, Embedding) else node.value("x")
    if source.rank != 2 or source.dtype is not f32 or not _small(source):
        return None
    if not isinstance(node.op, Embedding) and node.attributes["axis"] != -2:
        return None
    return None if not isinstance(node.op, Slice) and _indices(node).dtype.is_float else source


def _indices(node: Node) -> Value:
    return node.value("ids") if isinstance(node.op, Embedding) else node.value("indices")


def _ids(graph: Graph, node: Node, ranges: dict[tuple[DimLike, DimLike], Value]) -> Value:
    """The numbers of the rows that a node takes; those of a slice are written out, once for all slices alike."""
    if not isinstance(node.op, Slice):
        return _indices(node)
    key = node.attributes["start"], node.attributes["length"]
    if key not in ranges:
        with graph.at(node):
            ranges[key] = ops.iota(start=key[0], length=key[1])
    return ranges[key]


def _small(v: Value) -> bool:
    """Whether a table is one of positions: some thousand rows of some channels."""
    return (
        all(isinstance(d, int) and d <= 1 << 17 for d in v.shape) and isinstance(v.shape[1], int) and v.shape[1] <= 512
    )


def _blocks(table: Array) -> list[tuple[bool, Array]] | None:
    """(whether cosine, frequencies) of runs of channels, if every channel is one; sines and cosines both occur or not.

    Row p of a channel is sin(p f) or cos(p f).
    """
    count = table.shape[0]
    if count < FEWEST or not np.isin(table[0], (0.0, 1.0)).all() or np.abs(table).max() > 1:
        return None
    cosine: Array = table[0] == 1.0
    wide: Array = table.astype(np.float64)
    second: Array = wide[1]
    rates: Array = np.where(cosine, np.arccos(np.clip(second, -1, 1)), np.arcsin(np.clip(second, -1, 1)))
    places: Array = np.arange(count, dtype=np.float32)[:, None]
    for step in (2**i for i in range(1, 20) if 2**i < count):
        rates = _refined(rates, wide[step], step, cosine)
    rates = rates.astype(np.float32)
    found: Array = places * rates
    made: Array = np.where(cosine, np.cos(found), np.sin(found))
    if np.abs(made - table).max() > _bound(count):
        return None
    edges = [0, *(np.flatnonzero(cosine[1:] != cosine[:-1]) + 1).tolist(), cosine.size]
    return [(bool(cosine[a]), rates[a:b]) for a, b in pairwise(edges)]


def _bound(count: int) -> float:
    """How far rows of a table of that many positions may be off: angles grow with the position, and so do errors."""
    return 2e-6 * max(count, 8)


def _alike(a: Array, b: Array, count: int) -> bool:
    """Whether two rates give the same cosines in a table of `count` positions."""
    places: Array = np.arange(count, dtype=np.float32)[:, None]
    return bool(np.abs(np.cos(places * a) - np.cos(places * b)).max() <= _bound(count))


def _refined(rates: Array, row: Array, step: int, cosine: Array) -> Array:
    """Rates read off a later row, next to those of earlier ones, where it says more than these."""
    about = rates * step
    base = np.where(cosine, np.arccos(np.clip(row, -1, 1)), np.arcsin(np.clip(row, -1, 1)))
    other = np.where(cosine, -base, np.pi - base)
    best = about
    gap = np.full(rates.shape, np.inf)
    for angle in (base, other):
        near = angle + 2 * np.pi * np.round((about - angle) / (2 * np.pi))
        closer = np.abs(near - about) < gap
        best, gap = np.where(closer, near, best), np.where(closer, np.abs(near - about), gap)
    steep = np.where(cosine, np.abs(np.sin(best)), np.abs(np.cos(best))) > 0.3
    # A slow cosine is flat at first, where each later row still says more than the one before it.
    return np.where(steep | (about < 1), best / step, rates)


def _computed(
    graph: Graph,
    node: Node,
    ids: Value,
    blocks: list[tuple[bool, Array]],
    sines: list[Array],
    check: Check,
    angles: dict[tuple[Value, bytes], Value],
) -> list[tuple[Value, Value]]:
    """The rows that a node takes and these rows computed, which take their place; nothing where they are not equal."""
    parts: list[Value] = []
    source = _source(node)
    assert source is not None
    count = source.shape[0]
    assert isinstance(count, int)
    with graph.at(node):
        for cosine, rates in blocks:
            # Sine and cosine of one angle read the same value. A short table says little of the slow cosines in it.
            rates = next((r for r in sines if r.shape == rates.shape and _alike(r, rates, count)), rates)
            key = ids, rates.tobytes()
            if key not in angles:
                frequencies = graph.constant(tuple(float(r) for r in rates), f32)
                angles[key] = ids.reshape(*ids.shape, 1).cast(f32) * frequencies
            parts.append(ops.cos(angles[key]) if cosine else ops.sin(angles[key]))
        new = parts[0] if len(parts) == 1 else ops.concat(*parts, axis=-1)
    drawn = set[Value]() if isinstance(node.op, Slice) else {ids}
    if check.difference(node.output, new, drawn, {node}) is not None:
        erase_unread(graph, new)
        return []
    graph.replace(node.output, new)
    return [(node.output, new)]
