"""Find duplicates with tables on disk: each task takes one range of keys from all parts, so memory has a bound.

Exact duplicates share the 16-byte hash of their words. Near-duplicates share a band of their MinHash signatures and
are then compared by the whole signature. Links lead from a later document to an earlier one; `clusters` follows them
to the first document of each cluster, which is the one that stays. Links a little below the threshold are kept too:
an estimate errs, so they remove nothing, but hold documents together on one side of the split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.tensors import Array
from .files import whole_folder, write_json
from .parts import Parts

Table = np.memmap[Any, np.dtype[Any]]
"""An array in a file, written as it is changed."""
_LEAST = 1 << 14
_PAIRS = 4096
_CHUNK = 1 << 20
_ROW_COST = 8
"""Bytes held for each byte of keys and numbers while a range is sorted."""
KEPT, EXACT, NEAR = 0, 1, 2
"""State of a document: the first of its cluster, an exact duplicate, a near-duplicate."""


def ranges(documents: int, row_bytes: int, memory_bytes: int) -> int:
    """Into how many ranges of keys a table is cut so that one range fits into `memory_bytes`."""
    return max(1, -(-documents * row_bytes * _ROW_COST // memory_bytes))


def exact(run: Path, number: int, count: int, target: Path) -> dict[str, Any]:
    """Links between documents of equal hash, for range `number` of `count`: edges.npy i64[n,2] (later, first)."""
    parts = Parts.of(run)
    low, high = (np.bytes_(_bound(i, count)) for i in (number, number + 1))

    def slices() -> Iterator[tuple[Array, Array]]:
        for i in range(len(parts)):
            keys = parts.table(i, "sorted")
            a = int(np.searchsorted(keys, low))
            b = len(keys) if number + 1 == count else int(np.searchsorted(keys, high))
            yield keys[a:b], parts.base[i] + parts.table(i, "order")[a:b]

    edges = [np.stack([later, first], axis=1) for later, first, _ in groups(slices())]
    return _save(target, edges, {})


def near(run: Path, number: int, count: int, band: int, least: float, target: Path) -> dict[str, Any]:
    """Links between documents whose signatures agree in at least `least` of their places, for one range of keys.

    Within documents of equal key each is compared with the first and with the one before it.
    """
    parts = Parts.of(run)
    state = np.load(run / "exact" / "merged" / "state.npy", mmap_mode="r")
    low, high = number * (1 << 64) // count, (number + 1) * (1 << 64) // count

    def slices() -> Iterator[tuple[Array, Array]]:
        for i in range(len(parts)):
            keys = parts.table(i, "bands")[band]
            a = int(np.searchsorted(keys, np.uint64(low)))
            b = len(keys) if number + 1 == count else int(np.searchsorted(keys, np.uint64(high)))
            ids = parts.base[i] + parts.table(i, "rows")[band, a:b]
            alone = state[ids] == KEPT
            yield keys[a:b][alone], ids[alone]

    edges: list[Array] = []
    likeness: list[Array] = []
    candidates = 0
    for later, first, previous in groups(slices()):
        pairs = np.unique(np.concatenate([np.stack([later, x], axis=1) for x in (first, previous)]), axis=0)
        candidates += len(pairs)
        for i in range(0, len(pairs), _PAIRS):
            some = pairs[i : i + _PAIRS]
            alike = similarity(parts, some)
            edges.append(some[alike >= least])
            likeness.append(alike[alike >= least])
    return _save(target, edges, {"candidates": candidates}, likeness)


def similarity(parts: Parts, pairs: Array) -> Array:
    """The share of equal places in the signatures of each pair, f32[n]: an estimate of their Jaccard similarity."""
    a, b = (parts.lookup(pairs[:, i], "signatures") for i in (0, 1))
    return (a == b).mean(axis=1, dtype=np.float32)


def groups(slices: Iterable[tuple[Array, Array]]) -> Iterator[tuple[Array, Array, Array]]:
    """(later, first, previous) numbers of documents that share a key; slices come with rising numbers.

    Holds the different keys seen so far and their first document, never all documents of a frequent key.
    """
    known: tuple[Array, Array] | None = None
    waiting: list[tuple[Array, Array]] = []
    size = 0
    for keys, ids in slices:
        waiting.append((np.array(keys), np.array(ids)))
        size += len(keys)
        if size >= max(_LEAST, len(known[0]) if known else 0):
            known, links = _merge(known, waiting)
            waiting, size = [], 0
            yield links
    if waiting:
        yield _merge(known, waiting)[1]


def _merge(
    known: tuple[Array, Array] | None, waiting: list[tuple[Array, Array]]
) -> tuple[tuple[Array, Array], tuple[Array, Array, Array]]:
    both = ([known] if known else []) + waiting
    keys, ids = np.concatenate([k for k, _ in both]), np.concatenate([i for _, i in both])
    order = np.argsort(keys, kind="stable")
    keys, ids = keys[order], ids[order]
    new = np.ones(len(keys), bool)
    new[1:] = keys[1:] != keys[:-1]
    firsts = ids[new]
    later = np.flatnonzero(~new)
    group = np.cumsum(new) - 1
    return (keys[new], firsts), (ids[later], firsts[group[later]], ids[later - 1])


def merge_exact(run: Path, documents: int, tasks: Iterable[Path]) -> int:
    """Write first.npy i64[N] (the first of each document's cluster) and state.npy u8[N]; gives the duplicates found."""
    with whole_folder(run / "exact" / "merged") as folder:
        first, state = _tables(folder, documents)
        for i in range(0, documents, _CHUNK):
            first[i : i + _CHUNK] = np.arange(i, min(i + _CHUNK, documents))
        found = 0
        for edges in _edges(tasks):
            first[edges[:, 0]] = edges[:, 1]
            state[edges[:, 0]] = EXACT
            found += len(edges)
        first.flush()
        state.flush()
    return found


def clusters(run: Path, documents: int, tasks: list[Path], threshold: float) -> dict[str, int]:
    """Join linked documents into clusters (union-find, the smallest number leads); gives the near-duplicates.

    Writes first.npy i64[N] and state.npy u8[N] by the links that reach the threshold, side.npy i64[N] by all.
    """
    old_first, old_state = (np.load(run / "exact" / "merged" / f"{n}.npy", mmap_mode="r") for n in ("first", "state"))
    with whole_folder(run / "clusters" / "merged") as folder:
        first, state = _tables(folder, documents)
        side = _table(folder, "side", "<i8", documents)
        for i in range(0, documents, _CHUNK):
            first[i : i + _CHUNK] = side[i : i + _CHUNK] = old_first[i : i + _CHUNK]
            state[i : i + _CHUNK] = old_state[i : i + _CHUNK]
        for task in tasks:
            _join_all(first, task, threshold)
            _join_all(side, task, 0.0)
        starts = range(0, documents, _CHUNK)
        near = sum(_mark(state, _flatten(first, i), i) for i in starts)
        for i in starts:
            _flatten(side, i)
        for table in (first, side, state):
            table.flush()
    return {"near": near}


def _join_all(first: Array, task: Path, least: float) -> None:
    """Join along the links of a task whose similarity is at least `least`."""
    edges, alike = (np.load(task / f"{name}.npy", mmap_mode="r") for name in ("edges", "similarity"))
    for i in range(0, len(edges), _CHUNK):
        strong = np.array(edges[i : i + _CHUNK])[alike[i : i + _CHUNK] >= np.float32(least)]
        for a, b in strong.tolist():
            _join(first, a, b)


def _join(first: Array, a: int, b: int) -> None:
    a, b = _find(first, a), _find(first, b)
    if a != b:
        first[max(a, b)] = min(a, b)


def _find(first: Array, i: int) -> int:
    while (up := int(first[i])) != i:
        first[i] = first[up]
        i = up
    return i


def _flatten(first: Array, start: int) -> Array:
    """Let every document of a chunk point at its leader, and give them; chunks before it do already."""
    here = np.array(first[start : start + _CHUNK])
    while True:
        first[start : start + _CHUNK] = here
        up = first[here]
        if np.array_equal(up, here):
            return here
        here = np.array(up)


def _mark(state: Array, here: Array, start: int) -> int:
    """Set the state of a chunk's near-duplicates, given the leaders of its documents; gives their number."""
    follows = here != np.arange(start, start + len(here))
    states = np.array(state[start : start + _CHUNK])
    states[follows & (states == KEPT)] = NEAR
    state[start : start + _CHUNK] = states
    return int((states == NEAR).sum())


def _tables(folder: Path, documents: int) -> tuple[Table, Table]:
    return _table(folder, "first", "<i8", documents), _table(folder, "state", "u1", documents)


def _table(folder: Path, name: str, dtype: str, documents: int) -> Table:
    return np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.dtype(dtype), (documents,))


def _edges(tasks: Iterable[Path]) -> Iterator[Array]:
    for task in tasks:
        edges = np.load(task / "edges.npy", mmap_mode="r")
        for i in range(0, len(edges), _CHUNK):
            yield np.array(edges[i : i + _CHUNK])


def _bound(number: int, count: int) -> bytes:
    """The smallest 16-byte key of range `number`; the end of the last range is not a key."""
    return min(number * (1 << 64) // count, (1 << 64) - 1).to_bytes(8, "big")


def _save(
    target: Path, edges: list[Array], more: dict[str, Any], likeness: list[Array] | None = None
) -> dict[str, Any]:
    with whole_folder(target) as folder:
        found = np.concatenate(edges) if edges else np.zeros((0, 2), np.int64)
        np.save(folder / "edges.npy", found)
        if likeness is not None:
            np.save(folder / "similarity.npy", np.concatenate(likeness) if likeness else np.zeros(0, np.float32))
        result = {"links": len(found), **more}
        write_json(folder / "result.json", result)
    return result
