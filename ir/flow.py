"""Where the elements that a node reads end up: which axis of an operand becomes which axis of an output.

From these facts a pass knows how tokens move through a graph without knowing any op.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .types import DimLike, Shape

if TYPE_CHECKING:
    from .graph import Graph
    from .value import Node, Value


@dataclass(frozen=True)
class Link:
    """One axis of an operand and what becomes of it.

    operand, axis: counted from 0. to: the axis of `output` whose column j reads column j - shift of the operand; None:
    every element reads all columns, or columns that cannot be told before the graph runs. upto: column j of n reads
    the columns before it too, up to j + (m - n) of the operand's m.
    """

    operand: int
    axis: int
    to: int | None
    output: int = 0
    shift: DimLike = 0
    upto: bool = False


Links = tuple[Link, ...]


def aligned(shapes: Sequence[Shape | None], rank: int, *, first: int = 0, output: int = 0) -> Links:
    """Links of operands that broadcast to a result of `rank`. first: number of the first of them."""
    found: list[Link] = []
    for i, shape in enumerate(shapes):
        for axis in range(len(shape or ())):
            found.append(Link(first + i, axis, axis + rank - len(shape or ()), output))
    return tuple(found)


def along(shape: Shape, at: int, links: Iterable[Link] = (), *, operand: int = 0, output: int = 0) -> Links:
    """Links of an operand whose axes stay where they are, except `at`, for which `links` stand."""
    return (*(Link(operand, i, i, output) for i in range(len(shape)) if i != at), *links)


def regrouped(before: Shape, after: Shape) -> Links:
    """Links of a reshape: between the axes of the smallest groups that have as many elements on both sides."""
    left, right = _products(before), _products(after)
    found: list[Link] = []
    i = j = 0
    while i < len(before) and j < len(after):
        ends = ((x, y) for x in range(i + 1, len(before) + 1) for y in range(j + 1, len(after) + 1))
        equal = [(x, y) for x, y in ends if left[x] == right[y]]
        a, b = min(equal, key=sum, default=(len(before), len(after)))
        found += [Link(0, x, y) for x in range(i, a) for y in range(j, b) if before[x] != 1 and after[y] != 1]
        i, j = a, b
    return tuple(found)


def _products(shape: Shape) -> list[DimLike]:
    """Elements in the first 0, 1, ... axes."""
    found: list[DimLike] = [1]
    for d in shape:
        found.append(found[-1] * d)
    return found


class _Way(NamedTuple):
    """How far an axis of an operand of a composite has come in its body."""

    to: int | None
    shift: DimLike
    upto: bool


def links_of_body(body: Graph) -> Links:
    """Links of a composite, followed through its body."""
    ways: dict[Value, dict[tuple[int, int], set[_Way]]] = {}
    for i, v in enumerate(body.inputs.values()):
        ways[v] = {(i, axis): {_Way(axis, 0, False)} for axis in range(v.rank)}
    for node in body:
        for v, found in zip(node.outputs, _through(node, ways), strict=True):
            ways[v] = found
    links: dict[Link, None] = {}
    for o, v in enumerate(body.outputs.values()):
        for (operand, axis), found in ways.get(v, {}).items():
            links |= {Link(operand, axis, w.to, o, w.shift, w.upto): None for w in found}
    return tuple(links)


def _through(
    node: Node, ways: Mapping[Value, dict[tuple[int, int], set[_Way]]]
) -> list[dict[tuple[int, int], set[_Way]]]:
    results: list[dict[tuple[int, int], set[_Way]]] = [{} for _ in node.outputs]
    links = node.op.links(*node.operands, **node.attributes)
    for i, v in enumerate(node.operands):
        for source, found in ways.get(v, {}).items() if v is not None else ():
            for way in found:
                for link in links:
                    if link.operand == i and way.to == link.axis:
                        step = _Way(link.to, 0 if link.to is None else way.shift + link.shift, way.upto or link.upto)
                        results[link.output].setdefault(source, set()).add(step)
                if way.to is None:
                    for result in results:
                        result.setdefault(source, set()).add(way)
    return results
