"""Integers that follow from where they stand, whatever the lengths: numbers that are equal everywhere, and counts."""

from __future__ import annotations

import numpy as np

from ...ir import ops
from ...ir.graph import Graph, Node, Value
from ...ir.interpret import Array
from ...ir.ops.elementwise import Add, Cast, Mul, Sub
from ...ir.ops.logic import Comparison
from ...ir.ops.reduce import Cumsum
from ...ir.ops.shape import Concat, Expand, Gather, Reshape, Slice, Transpose
from ..dce import dce
from ..raising.affine import Affine, affine

_MOVES = (Reshape, Expand, Transpose, Slice, Gather)


def fold_uniform(graph: Graph) -> int:
    """Replace integers and bools that are one number everywhere by that number. Gives how many.

    Exporters compare neighbouring positions to find where a packed sequence begins; positions that count columns are
    always one apart, so that nothing begins anywhere.
    """
    known: dict[Value, Array] = {}
    folded = 0
    for node in graph:
        if len(node.outputs) != 1 or node.output.dtype.is_float:
            continue
        number = _number(node, known)
        if number is None:
            folded += _count_columns(graph, node)
            continue
        v = node.output
        known[v] = number
        if node.op.constant or isinstance(node.op, (Expand, Reshape)):
            continue
        with graph.at(node):
            constant = graph.constant(number.item(), v.dtype)
            graph.replace(v, constant if v.rank == 0 else ops.expand(constant, shape=v.shape))
        folded += 1
    dce(graph)
    return folded


def _number(node: Node, known: dict[Value, Array]) -> Array | None:
    v = node.output
    if node.op.constant:
        return None if v.number is None else np.asarray(v.number, v.dtype.numpy)
    given = [_source(x, known) for x in node.arguments]
    if isinstance(node.op, _MOVES):
        return given[0]
    if isinstance(node.op, Concat):
        same = [x for x in given if x is not None]
        return same[0] if len(same) == len(given) and all(x == same[0] for x in same) else None
    if isinstance(node.op, Cumsum):
        return given[0] if given[0] is not None and given[0] == 0 else None
    numbers = [x for x in given if x is not None]
    if len(numbers) == len(given) and node.op.numpy is not None:
        if isinstance(node.op, Cast):
            return numbers[0].astype(v.dtype.numpy)
        return np.asarray(node.op.numpy(*numbers, **node.attributes)) if node.op.elementwise else None
    return _compared(node) if isinstance(node.op, Comparison) else None


def _source(v: Value, known: dict[Value, Array]) -> Array | None:
    """The number of a value that stands for a replaced one, too."""
    if v in known or v.producer is None:
        return known.get(v)
    number = _number(v.producer, known) if isinstance(v.producer.op, Expand) or v.producer.op.constant else None
    if number is not None:
        known[v] = number
    return number


def _compared(node: Node) -> Array | None:
    """What a comparison of two counts says, if they are the same distance apart in every column."""
    x, y = (affine(v) for v in node.arguments)
    if x is None or y is None or node.op.numpy is None:
        return None
    apart: Affine = x.plus(y.times(-1))
    if any(apart.slopes) or not isinstance(apart.offset, int):
        return None
    return np.asarray(node.op.numpy(np.int64(apart.offset), np.int64(0)))


def _count_columns(graph: Graph, node: Node) -> bool:
    """A sum of ones along an axis, and what is computed from such, is the number of the column."""
    v = node.output
    found = affine(v) if isinstance(node.op, (Cumsum, Add, Sub, Mul)) else None
    if found is None or len(found.slopes) != v.rank or sorted(found.slopes) != [*(0,) * (v.rank - 1), 1]:
        return False
    axis = found.slopes.index(1)
    if isinstance(v.shape[axis], int):
        return False
    with graph.at(node):
        count = ops.iota(start=found.offset, length=v.shape[axis], dtype=v.dtype)
        shaped = count.reshape(*(d if i == axis else 1 for i, d in enumerate(v.shape)))
        graph.replace(v, ops.expand(shaped, shape=v.shape))
    return True
