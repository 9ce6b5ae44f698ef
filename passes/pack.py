"""Pack projections of one input into one matrix product. Weights stay as they are: the pack is `concat(wq, wk, wv)`."""

from __future__ import annotations

from ..ir.graph import Graph, Node
from ..ir.ops import concat, linear, slice_
from .encode import encoding_of


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
