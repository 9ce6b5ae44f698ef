"""Elements that are looked up one by one, each at its own place: the value itself, in another shape."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...ir import ops
from ...ir.graph import Graph, Node, Value
from ...ir.ops.elementwise import Add, Cast, Mul
from ...ir.ops.scatter import GatherNd
from ...ir.ops.shape import Concat, Expand, Gather, Iota, Reshape
from ...ir.types import DimLike
from ..dce import dce


@dataclass(frozen=True)
class _Places:
    """offset + sum of strides[i] * index along axis i; sizes that are symbols may be strides."""

    offset: DimLike
    strides: dict[int, DimLike] = field(default_factory=dict[int, DimLike])


def drop_whole_reads(graph: Graph) -> int:
    """Replace rows gathered in their own order, all of them, by a reshape. Gives how many.

    An exporter that indexes a mask [rows, tokens] by row and by token writes row * tokens + token as the place, or
    joins the numbers of both.
    """
    dropped = 0
    for node in graph:
        if isinstance(node.op, GatherNd) and (axes := _grid(node)) is not None:
            x, shape = node.value("x"), node.output.shape
            placed = dict(zip(axes, x.shape, strict=True))
            with graph.at(node):
                line = ops.reshape(x, shape=tuple(placed.get(i, 1) for i in range(len(shape))))
                graph.replace(node.output, line if line.shape == shape else ops.expand(line, shape=shape))
            dropped += 1
            continue
        if not isinstance(node.op, Gather) or node.attributes["axis"] % node.value("x").rank:
            continue
        x, indices = node.value("x"), node.value("indices")
        found = _places(indices)
        if found is None or found.offset != 0 or indices.type.elements != x.shape[0]:
            continue
        if _in_order(indices, found):
            with graph.at(node):
                graph.replace(node.output, ops.reshape(x, shape=node.output.shape))
            dropped += 1
    if dropped:
        dce(graph)
    return dropped


def _grid(node: Node) -> list[int] | None:
    """Axes of the result over which the axes of what is indexed run, whole and in their order, if they do."""
    x, indices = node.value("x"), node.value("indices")
    joined = indices.producer
    if (
        joined is None
        or not isinstance(joined.op, Concat)
        or joined.attributes["axis"] % indices.rank != indices.rank - 1
    ):
        return None
    if len(joined.arguments) != x.rank or any(part.shape[-1] != 1 for part in joined.arguments):
        return None
    axes: list[int] = []
    for part, size in zip(joined.arguments, x.shape, strict=True):
        found = _places(part)
        if found is None or found.offset != 0 or list(found.strides.values()) != [1]:
            return None
        (axis,) = found.strides
        if part.shape[axis] != size:
            return None
        axes.append(axis)
    return axes if axes == sorted(set(axes)) else None


def _in_order(indices: Value, found: _Places) -> bool:
    behind: DimLike = 1
    for axis in reversed(range(indices.rank)):
        size = indices.shape[axis]
        if size != 1 and found.strides.get(axis, 0) != behind:
            return False
        behind = behind * size
    return True


def _places(v: Value) -> _Places | None:
    node = v.producer
    if node is None:
        return None
    if node.op.constant:
        return None if v.number is None else _Places(int(v.number))
    if isinstance(node.op, Iota):
        start: DimLike = node.attributes["start"]
        return _Places(start, {0: 1} if v.shape[0] != 1 else {})
    if not isinstance(node.op, (Add, Mul, Cast, Reshape, Expand)):
        return None
    parts = [_places(x) for x in node.arguments]
    first, second = parts[0], parts[-1]
    if first is None or second is None:
        return None
    if isinstance(node.op, (Add, Mul)):
        first, second = (_raised(p, x.rank, v.rank) for p, x in zip((first, second), node.arguments, strict=True))
        return _sum(first, second) if isinstance(node.op, Add) else _product(first, second)
    x = node.arguments[0]
    if isinstance(node.op, Reshape):
        return _reshaped(first, x, v)
    return _raised(first, x.rank, v.rank) if isinstance(node.op, Expand) else first


def _raised(p: _Places, rank: int, to: int) -> _Places:
    return _Places(p.offset, {axis + to - rank: s for axis, s in p.strides.items()})


def _sum(x: _Places, y: _Places) -> _Places:
    axes = x.strides.keys() | y.strides.keys()
    return _Places(x.offset + y.offset, {a: x.strides.get(a, 0) + y.strides.get(a, 0) for a in axes})


def _product(x: _Places, y: _Places) -> _Places | None:
    for a, b in ((x, y), (y, x)):
        if not b.strides:
            return _Places(a.offset * b.offset, {axis: s * b.offset for axis, s in a.strides.items()})
    return None


def _reshaped(p: _Places, x: Value, v: Value) -> _Places | None:
    """Through a reshape that only adds or removes axes of one element."""
    before = [i for i, d in enumerate(x.shape) if d != 1]
    after = [i for i, d in enumerate(v.shape) if d != 1]
    if [x.shape[i] for i in before] != [v.shape[i] for i in after]:
        return None
    moved = dict(zip(before, after, strict=True))
    return _Places(p.offset, {moved[a]: s for a, s in p.strides.items() if a in moved})
