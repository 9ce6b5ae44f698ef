"""Which values of two ONNX files stand for each other: by name, by equal numbers, or by what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from .ir.tensors import Array
from .original import apart
from .subgraphs import Side

SWAPPED = frozenset("Add And Equal Max Mean Min Mul Or Sum Xor".split())
"""Operators whose operands may stand in any order."""


FAR = 1000.0
"""How many times larger than all others numbers are that a mask has pushed away."""


def beyond(x: Array, y: Array, bound: float) -> bool:
    """Whether two arrays differ by more than a share of the largest number, those apart that a mask pushed away."""
    x, y = in_one_width(x, y)
    pushed = _pushed_away(x)
    if x.shape != y.shape or not pushed.any():
        return bool(apart(x, y, np.ones(x.shape, np.bool_), bound)[0])
    return bool(apart(x, y, ~pushed, bound)[0]) or not np.array_equal(pushed, _pushed_away(y))


def in_one_width(x: Array, y: Array) -> tuple[Array, Array]:
    """Both as they are; of floats of two widths both in the wider one."""
    if x.dtype == y.dtype or not _alike(x, y):
        return x, y
    wider = max(x.dtype, y.dtype, key=lambda d: d.itemsize)
    return x.astype(wider), y.astype(wider)


def _pushed_away(x: Array) -> Array:
    """Which numbers are negative and far larger than all others, or without end, as scores to which a mask was added.

    One exporter adds minus infinity and another one the lowest number: what softmax makes of both is the same.
    """
    if x.dtype.kind != "f" or not x.size:
        return np.zeros(x.shape, np.bool_)
    endless = np.isneginf(x)
    sizes = np.abs(np.where(np.isfinite(x), x, 0).astype(np.float64))
    far = (sizes > sizes.max() / 2.5) & (x < 0) & ~endless
    far &= sizes.max() > FAR * sizes[~far].max(initial=0.0)
    return (far | endless) & bool((~(far | endless)).any())


def aligned(
    a: Side, b: Side, old: Mapping[str, Array], new: Mapping[str, Array], bound: float
) -> tuple[dict[str, str], dict[str, str]]:
    """(the value of the first file for each of the second that agrees, and for each that stands for one, in order).

    Values of one name correspond where the same operator makes them, others where the same operator makes them of
    values that correspond, or where they are equal; what nodes that correspond read, at the same places, does, too.
    """
    pool: dict[tuple[Any, ...], list[str]] = {}
    for name, x in old.items():
        pool.setdefault((x.shape, x.dtype), []).append(name)
    agreed, twins = {n: n for n in b.fed}, {n: n for n in b.fed}
    ends, mates = set(b.outputs), Mates(a, b, twins)
    for node in b.model.graph.node:
        mate = mates.of(node)
        for i, name in enumerate(node.output):
            if name not in new:
                continue
            x = new[name]
            if name in old and (name in ends or (_corresponds(a.makers.get(name), node) and _alike(old[name], x))):
                found = name
            else:
                found = mate.output[i] if mate is not None and mate.output[i] in old else ""
                found = found if found and _alike(old[found], x) else ""
                fits = found and not beyond(old[found], x, bound)
                if not fits and node.op_type != "Constant" and (x.dtype.kind == "f" or not found):
                    equal = (n for n in pool.get((x.shape, x.dtype), ()) if not beyond(old[n], x, bound))
                    found = next(equal, found)
            if found:
                twins[name] = found
                if not beyond(old[found], x, bound):
                    agreed[name] = found
    _read_alike(a, b, old, new, twins)
    order = [*b.fed, *(n for node in b.model.graph.node for n in node.output)]
    return agreed, {n: twins[n] for n in order if n in twins}


class Mates:
    """Nodes of a second file and those of the first that do the same with values that correspond."""

    def __init__(self, a: Side, b: Side, twins: Mapping[str, str]) -> None:
        self.a, self.b, self.twins = a, b, twins
        self.mates: dict[int, onnx.NodeProto] = {}
        self.paired: set[tuple[Any, ...]] = set()
        self.nodes: dict[tuple[Any, ...], list[onnx.NodeProto]] = {}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        own = {n: n for n in (*a.fed, *a.makers)}
        for node in a.model.graph.node:
            key = _key(a, node, own)
            if key is not None:
                self.nodes.setdefault(key, []).append(node)
        for node in b.model.graph.node:
            self.readers.setdefault(_first_read(b, node), []).append(node)

    def of(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The node of the first file; None where there is none, or it is open which of several."""
        key = _key(self.b, node, self.twins)
        if key is not None and key not in self.paired:
            self.paired.add(key)
            self.pair(key, [n for n in self.readers[_first_read(self.b, node)] if _key(self.b, n, self.twins) == key])
        return self.mates.get(id(node))

    def pair(self, key: tuple[Any, ...], nodes: Sequence[onnx.NodeProto]) -> None:
        """Pair nodes of one operator and the same operands: those alike in all that is written first."""
        others = list(self.nodes.get(key, ()))
        rest: list[onnx.NodeProto] = []
        for node in nodes:
            same = next((n for n in others if _written(self.a, n) == _written(self.b, node)), None)
            if same is None:
                rest.append(node)
            else:
                self.mates[id(node)] = same
                others = [n for n in others if n is not same]
        if len(rest) == len(others):
            self.mates |= {id(n): m for n, m in zip(rest, others, strict=True)}


def _known(side: Side, name: str) -> bool:
    """Whether a value is written in the file, or is none."""
    return not name or name in side.stored or (name in side.makers and side.makers[name].op_type == "Constant")


def _first_read(side: Side, node: onnx.NodeProto) -> str:
    """The first value that is computed; for operators whose operands may be swapped, the first by name."""
    read = [n for n in node.input if not _known(side, n)]
    return min(read, default="") if node.op_type in SWAPPED else next(iter(read), "")


def _key(side: Side, node: onnx.NodeProto, names: Mapping[str, str]) -> tuple[Any, ...] | None:
    """What a node does with which values, all that is written apart; None where one has no name yet."""
    read = ["" if _known(side, n) else names.get(n) for n in node.input]
    if node.op_type == "Constant" or None in read:
        return None
    read = sorted(str(n) for n in read) if node.op_type in SWAPPED else read
    return node.domain, node.op_type, len(node.output), *read


def _written(side: Side, node: onnx.NodeProto) -> list[bytes]:
    """Attributes and stored operands of a node."""
    attributes = sorted(x.SerializeToString() for x in node.attribute)
    return attributes + [side.numbers(n) for n in node.input if n and _known(side, n)]


def _corresponds(one: Any, two: Any) -> bool:
    """Whether two nodes that give a value of one name stand for each other: by operator, or by name and operands."""
    return one is not None and (one.op_type == two.op_type or (one.name, one.input) == (two.name, two.input))


def _alike(x: Array, y: Array) -> bool:
    """Whether both are floats, of any width, or neither is: codes of numbers are no numbers."""
    return x.dtype == y.dtype or x.dtype.kind == y.dtype.kind == "f"


def _read_alike(a: Side, b: Side, old: Mapping[str, Array], new: Mapping[str, Array], twins: dict[str, str]) -> None:
    """Add what differs but is read at the same place by nodes whose results correspond, from the outputs back."""
    taken = set(twins.values())
    for two in reversed(b.model.graph.node):
        name = next((n for n in two.output if n in twins), None)
        one = a.makers.get(twins[name]) if name is not None else None
        if one is None or one.op_type != two.op_type or len(one.input) != len(two.input):
            continue
        for mine, theirs in _places(a, b, one, two, twins):
            fits = mine in a.makers and mine in old and theirs in new and _alike(old[mine], new[theirs])
            if fits and theirs not in twins and mine not in taken:
                twins[theirs] = mine
                taken.add(mine)


def _places(a: Side, b: Side, one: Any, two: Any, twins: Mapping[str, str]) -> list[tuple[str, str]]:
    """Operands of two nodes that stand at the same places; of those in any order, what is left or made alike."""
    if two.op_type not in SWAPPED:
        return list(zip(one.input, two.input, strict=True))
    known = {twins[n] for n in two.input if n in twins}
    mine = {n: a.makers[n].op_type for n in one.input if not _known(a, n) and n in a.makers and n not in known}
    theirs = {n: b.makers[n].op_type for n in two.input if not _known(b, n) and n in b.makers and n not in twins}
    if len(mine) == len(theirs) == 1:
        return list(zip(mine, theirs, strict=True))
    kinds = [*mine.values()]
    return [(m, t) for m, kind in mine.items() for t, other in theirs.items()
            if kind == other and kinds.count(kind) == 1 and [*theirs.values()].count(kind) == 1]  # fmt: skip
