"""Inputs that bring what was read before: known by what becomes of them, since every exporter names them otherwise."""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from ..ir.ops.cache import CacheAppend
from ..ir.ops.elementwise import Cast
from ..ir.ops.foreign import Foreign
from ..ir.ops.linear import Embedding
from ..ir.ops.scatter import Pad
from ..ir.ops.shape import Concat, Expand, Gather, Reshape, Slice, Transpose
from ..ir.types import Dim, DimLike

_MOVES = (Cast, Reshape, Transpose, Expand, Slice)
_FOREIGN: dict[str, frozenset[int]] = {
    "GroupQueryAttention": frozenset({3, 4}),
    "MultiHeadAttention": frozenset({6, 7}),
    "DecoderMaskedMultiHeadAttention": frozenset({5, 6}),
    "Attention": frozenset({4, 5}),
}
"""Places of operands that bring keys and values of a past, by name of an operator of attention."""


def past_symbols(graph: Graph) -> dict[Value, str]:
    """Inputs behind whose tokens new ones are put => the symbol that counts the tokens that they bring."""
    return {v: name for v, (name, _) in _grown(graph).items()}


def total_symbols(graph: Graph) -> frozenset[str]:
    """Symbols that count the tokens of a past and the new ones together: the last axis of masks, and of nothing else.

    Empty without a past.
    """
    grown = _grown(graph)
    new = {s for _, d in grown.values() for s in _symbols(d)}
    inputs = [v for v in graph.inputs.values() if v.rank >= 2 and v not in grown]
    last = {s for v in inputs for s in _symbols(v.shape[-1])}
    others = {s for v in graph.inputs.values() for d in v.shape[: max(v.rank - 1, 1)] for s in _symbols(d)}
    ids = {s for v in inputs if _chooses(v) for s in _symbols(v.shape[-1])}
    return frozenset(last - others - ids - new) if grown else frozenset()


def _chooses(v: Value) -> bool:
    """Whether whole numbers choose rows of a table."""
    return any(
        (isinstance(node.op, Embedding) and node["ids"] is v)
        or (isinstance(node.op, Gather) and node["indices"] is v)
        or (isinstance(node.op, Foreign) and node.attributes["name"] == "GatherBlockQuantized")
        for node in v.users
    )


def _grown(graph: Graph) -> dict[Value, tuple[str, DimLike]]:
    """Past inputs => the symbol of their tokens, and to how many these grow (0: it is not said)."""
    found: dict[Value, tuple[str, DimLike]] = {}
    for v in graph.inputs.values():
        for d in v.shape[1:] if v.rank >= 3 else ():
            if not isinstance(d, Dim) or d.name is None or d == v.shape[0]:
                continue
            longer = _longer(v, d)
            if longer is not None:
                found[v] = d.name, longer
                break
    return found


def _longer(v: Value, size: Dim) -> DimLike | None:
    """To how many an axis of that size grows where a value, moved about, is the first part of something longer."""
    waiting, seen = [v], {v}
    while waiting:
        x = waiting.pop()
        for node in x.users:
            longer = _lengthened(node, x, size)
            if longer is not None:
                return longer
            if not _moves(node, x):
                continue
            if node.output not in seen and size in node.output.shape:
                seen.add(node.output)
                waiting.append(node.output)
    return None


def _moves(node: Node, x: Value) -> bool:
    """Whether a node gives a value in another form: in another layout, or scaled by something stored."""
    if len(node.outputs) != 1:
        return False
    stored = all(v is x or v.producer is None or v.is_constant for v in node.arguments)
    return isinstance(node.op, _MOVES) or (node.op.elementwise and stored)


def _lengthened(node: Node, x: Value, size: Dim) -> DimLike | None:
    axis = x.shape.index(size)
    if isinstance(node.op, Concat):
        along = node.attributes["axis"] % x.rank == axis
        return node.output.shape[axis] if along and node.arguments[0] is x and x not in node.arguments[1:] else None
    if isinstance(node.op, CacheAppend):
        return node.output.shape[2] if node["past"] is x and axis == 2 else None
    if isinstance(node.op, Pad):
        before, after = node.attributes["widths"][axis]
        return node.output.shape[axis] if before == 0 and after != 0 else None
    if isinstance(node.op, Foreign):
        absent: tuple[int, ...] = node.attributes["absent"]
        places = [i for i in range(len(node.operands) + len(absent)) if i not in absent]
        at = {place for place, v in zip(places, node.operands, strict=True) if v is x}
        return 0 if at & _FOREIGN.get(node.attributes["name"], frozenset[int]()) else None
    return None


def _symbols(d: object) -> frozenset[str]:
    return d.symbols if isinstance(d, Dim) else frozenset()
