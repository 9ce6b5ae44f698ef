"""Recurrent states across calls: first states come in, last states go out, as the KV cache does for attention."""

from __future__ import annotations

from ..ir.errors import PassError
from ..ir.graph import Graph, Node, Value
from ..ir.ops import slice_
from ..ir.types import Dim, TensorType
from ..ir.value import leaves
from .split import DECODER_INPUTS

RECURRENT = ("rnn", "lstm", "gru")
TOTAL = Dim.symbol("T")
"""Number of tokens read so far and now; the mask covers all, as it does beside a KV cache."""


def recurrences(graph: Graph) -> list[Node]:
    """Recurrent nodes that read tokens one by one while decoding, in order: all, or those of the decoder."""
    found = [n for n in graph if n.op.name in RECURRENT]
    if DECODER_INPUTS[0] not in graph.inputs:
        return found
    reached: set[Value] = {v for k, v in graph.inputs.items() if k in DECODER_INPUTS}
    for node in graph:
        if any(v in reached for v in node.arguments):
            reached.update(node.outputs)
    return [n for n in found if n.outputs[0] in reached]


def add_state(graph: Graph) -> int:
    """Give recurrence N the inputs past_state.N.h (and .c) [B,H] and the outputs present_state.N.h (and .c).

    A state that the graph computes itself, as a decoder starts from its encoder, becomes the output
    initial_state.N.h: what past_state.N.h is in the first call; otherwise that is zeros. A mask over the S tokens
    becomes one over all T read so far, of which the recurrence takes the last S. Gives the number of recurrences.
    """
    nodes = recurrences(graph)
    for index, node in enumerate(nodes):
        names = node.op.signature.operands
        for slot, name in enumerate(n for n in ("h0", "c0") if n in names):
            i, label = names.index(name), f"{index}.{name[0]}"
            state = node.outputs[slot + 1]
            first = node.operands[i]
            if first is not None:
                graph.output(f"initial_state.{label}", first)
            graph.set_operand(node, i, graph.input(f"past_state.{label}", state.type))
            graph.output(f"present_state.{label}", state)
    for mask, rows in _masks(nodes).items():
        _grow(graph, mask, rows)
    return len(nodes)


def _masks(nodes: list[Node]) -> dict[Value, Dim]:
    """Inputs [B,S] that lengths are computed from, with S. Raises PassError if S is not one symbol."""
    found: dict[Value, Dim] = {}
    for node in nodes:
        x, lengths = node.operands[0], node.operands[node.op.signature.operands.index("lengths")]
        assert x is not None
        rows = x.shape[1]
        for v in [] if lengths is None else leaves(lengths):
            if not v.is_param and v.rank == 2 and v.shape[1] == rows:
                if not isinstance(rows, Dim) or rows.name is None:
                    what = f"mask {v.type} has length {rows}, which is not one symbol: it cannot grow with the state"
                    raise PassError(what, place=str(node.location))
                found[v] = rows
    return found


def _grow(graph: Graph, mask: Value, rows: Dim) -> None:
    if any(TOTAL.symbols & v.type.symbols for v in graph.inputs.values() if v is not mask and v.name != mask.name):
        taken = next(v for v in graph.inputs.values() if TOTAL.symbols & v.type.symbols)
        raise PassError(f"{taken!r} already has a length {TOTAL}, so mask {mask.name} cannot")
    longer = Value(graph, TensorType(mask.dtype, (mask.shape[0], TOTAL)), mask.name)
    graph.inputs[mask.name] = longer
    with graph.at(next(iter(graph))):
        now = slice_(longer, axis=1, start=TOTAL - rows, length=rows)
    graph.replace(mask, now)
