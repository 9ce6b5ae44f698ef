"""Indices that say nothing: elements taken along the rows of one table, elements written to all places in order."""

from __future__ import annotations

from ...ir import ops
from ...ir.graph import Graph, Value
from ...ir.ops.scatter import ScatterNd
from ...ir.ops.shape import Concat, TakeAlongAxis
from .affine import affine
from .views import flat, view_of


def write_whole(graph: Graph) -> int:
    """Replace what is written to every place, each element to its own, by what is written. Gives how many.

    TorchScript writes `mask[:, :, :, :length] = ...` so, with indices computed from the sizes.
    """
    replaced = 0
    for node in [n for n in graph if isinstance(n.op, ScatterNd) and n.attributes["reduction"] == "none"]:
        x, indices, updates = node.value("x"), node.value("indices"), node.value("updates")
        if updates.shape == x.shape and indices.shape[:-1] == x.shape[: indices.rank - 1] and _own_places(indices):
            graph.replace(node.output, updates)
            graph.erase(node)
            replaced += 1
    return replaced


def _own_places(indices: Value) -> bool:
    """Whether the last axis of indices [..., n] holds where they stand along the n axes before it.

    Along an axis of one element there is no other place.
    """
    node = indices.producer
    sizes = indices.shape[:-1]
    if node is None or not isinstance(node.op, Concat) or node.attributes["axis"] != -1:
        return False
    if len(node.arguments) != len(sizes):
        return False
    for axis, (size, part) in enumerate(zip(sizes, node.arguments, strict=True)):
        found = affine(part) if size != 1 else None
        own = tuple(int(i == axis) for i in range(indices.rank))
        if size != 1 and (found is None or found.offset != 0 or found.slopes != own):
            return False
    return True


def gather_rows(graph: Graph) -> int:
    """Replace elements taken along the rows of a table that repeats, by its rows looked up. Gives how many.

    GPT-J looks up its sines and cosines so: `torch.gather` of a table for each row of the batch, with positions that
    repeat along the channels.
    """
    replaced = 0
    for node in [n for n in graph if isinstance(n.op, TakeAlongAxis) and n.attributes["axis"] == -2]:
        table, indices = _table(node.value("x")), node.value("indices")
        if table is None or not _repeats(indices):
            continue
        with graph.at(node):
            first = ops.slice_(indices, axis=-1, start=0, length=1).reshape(*indices.shape[:-1])
            graph.replace(node.output, ops.gather(table, first, axis=0))
        graph.erase(node)
        replaced += 1
    return replaced


def _table(x: Value) -> Value | None:
    """The matrix that repeats along all axes but the last two, of which these are the rows and columns."""
    view = view_of(x)
    *lead, rows, columns = (flat(g) for g in view.groups)
    if view.source.shape != x.shape[-2:] or any(a.real for g in lead for a in g):
        return None
    return view.source if [*rows, *columns] == flat(view.order) else None


def _repeats(v: Value) -> bool:
    """Whether a value is the same along its last axis."""
    if not v.rank or v.shape[-1] == 1:
        return True
    node = v.producer
    if node is not None and node.op.elementwise:
        return all(map(_repeats, node.arguments))
    return not any(a.real for a in flat(view_of(v).groups[-1]))
