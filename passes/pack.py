"""Pack projections of one input into one matrix product. Weights stay as they are: the pack is `concat(wq, wk, wv)`."""

from __future__ import annotations

from ..ir.graph import Graph, Node, Value
from ..ir.ops import concat, linear, slice_
from ..ir.ops.attention import Attention
from ..ir.ops.cache import CacheAppend, CacheRead
from ..ir.ops.feed_forward import GatedFeedForward, activate
from ..ir.ops.linear import Linear
from ..ir.ops.norm import LayerNorm, RMSNorm
from ..ir.ops.position import Rope
from ..ir.ops.shape import Reshape
from .encode import encoding_of


def pack_qkv(graph: Graph) -> int:
    """Query, key and value projections of each self-attention become one linear and three slices. Gives how many."""
    packed = 0
    for node in list(graph):
        if isinstance(node.op, Attention):
            found = [projection_of(node[name]) for name in ("q", "k", "v")]
            linears = [n for n in found if n is not None]
            if len(set(linears)) == 3 and pack_linears(graph, linears):
                packed += 1
    return packed


def projection_of(v: Value | None) -> Node | None:
    """The linear that an attention operand comes from, through head split, rotation, norm and cache."""
    while v is not None and v.producer is not None:
        node = v.producer
        if isinstance(node.op, Linear):
            return node
        if isinstance(node.op, CacheAppend):
            v = node["new"]
        elif isinstance(node.op, CacheRead):
            v = node["cache"]
        elif isinstance(node.op, (Reshape, Rope, RMSNorm, LayerNorm)):
            v = node["x"]
        else:
            return None
    return None


def pack_linears(graph: Graph, linears: list[Node]) -> bool:
    """Merge linears with one input, one layout, one encoding, and biases all present or all absent.

    Gives whether it did.
    """
    x, transposed = linears[0].value("x"), linears[0].attributes["transposed"]
    biased = len({n["b"] is None for n in linears}) == 1
    if not biased or any(n["x"] is not x or n.attributes["transposed"] != transposed for n in linears):
        return False
    first = min(linears, key=lambda n: n.order)
    ws = [n.value("w") for n in linears]
    bs = [b for n in linears if (b := n["b"]) is not None]
    if len(set(map(encoding_of, ws))) > 1:
        return False
    if any(v.producer and v.producer.order > first.order for v in [*ws, *bs]):
        return False
    with graph.at(first):
        w = concat(*ws, axis=-1 if transposed else -2)
        y = linear(x, w, concat(*bs, axis=-1) if bs else None, transposed=transposed)
        start = 0
        for node in linears:
            width = node.output.shape[-1]
            graph.replace(node.output, slice_(y, axis=-1, start=start, length=width))
            start = start + width
    for node in linears:
        graph.erase(node)
    return True


def pack_gate_up(graph: Graph) -> int:
    """gated_feed_forward becomes one linear for gate and up, slices, activation, product and down. Gives how many."""
    packed = 0
    for node in graph:
        if not isinstance(node.op, GatedFeedForward):
            continue
        x, w_gate, w_up, w_down, b_gate, b_up, b_down = node.operands
        if x is None or w_gate is None or w_up is None or w_down is None or (b_gate is None) != (b_up is None):
            continue
        if encoding_of(w_gate) != encoding_of(w_up):
            continue
        width = w_up.shape[0]
        with graph.at(node):
            b = concat(b_gate, b_up, axis=-1) if b_gate is not None and b_up is not None else None
            both = linear(x, concat(w_gate, w_up, axis=-2), b)
            gate, up = (slice_(both, axis=-1, start=i * width, length=width) for i in (0, 1))
            y = linear(activate(gate, node.attributes["activation"]) * up, w_down, b_down)
        graph.replace(node.output, y)
        graph.erase(node)
        packed += 1
    return packed
