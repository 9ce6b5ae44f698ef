"""Separate an encoder-decoder into two graphs, so that the encoder and the keys and values over it run once."""

from __future__ import annotations

from ..ir.clone import bring, clone
from ..ir.errors import PassError
from ..ir.graph import Graph, Node, Value
from ..ir.ops.attention import Attention
from ..ir.ops.cache import cache_read
from ..ir.ops.shape import transpose
from ..ir.slots import TARGETS, Growth, Slot, encoded
from ..ir.value import leaves


def is_separable(graph: Graph) -> bool:
    """Whether the graph reads a source and makes other tokens from it, or gives something that follows from it."""
    stream = graph.stream or TARGETS
    inside = {*stream.names, *(s.input for s in graph.slots)}
    sources = _sources(graph, inside)
    if stream.ids not in graph.inputs or not sources:
        return False
    late = _dependents(graph, [v for k, v in graph.inputs.items() if k not in sources])
    given = (v for v in graph.outputs.values() if v.producer is None or v.producer not in late)
    return bool(_frontier(graph, late)) or any(_depends_on_input(v) for v in given)


def _sources(graph: Graph, inside: set[str]) -> list[str]:
    """Inputs that stay as they are while tokens are made: without the length of what is made."""
    stream = graph.stream or TARGETS
    return [k for k, v in graph.inputs.items() if k not in inside and stream.length not in v.type.symbols]


def separate(graph: Graph) -> tuple[Graph, Graph]:
    """(encoder, decoder). What does not depend on the tokens that are made goes to the encoder.

    Values the decoder needs from there become outputs of the one and slots of growth `once` of the other:
    `encoder.N.key` / `encoder.N.value` for cross-attention N, in the layout of caches [B,K,S,D], which kernels read as
    it is at every step; `encoder.N` for others. Masks are cheap: the source mask is an input of both. Raises PassError
    for a graph that reads no source.
    """
    stream = graph.stream or TARGETS
    if not is_separable(graph):
        raise PassError(f"graph {graph.name} makes no tokens ({stream.ids}) from a source")
    sources = _sources(graph, {*stream.names, *(s.input for s in graph.slots)})
    late = _dependents(graph, [v for k, v in graph.inputs.items() if k not in sources])
    frontier = _frontier(graph, late)
    encoder, decoder = Graph(f"{graph.name}_encoder"), Graph(f"{graph.name}_decoder")
    early = [n for n in graph if n not in late]
    inner = clone(early, encoder, {})
    for v in graph.outputs.values():
        if v.producer is None:
            bring(v, encoder, inner)
    for name, v in graph.outputs.items():
        if v in inner:
            encoder.output(name, inner[v])
    given: dict[Value, Value] = {}
    for v, name in frontier.items():
        cached = any(isinstance(n.op, Attention) and v in (n["k"], n["v"]) for n in late)
        place = v.producer.location if v.producer is not None else None
        with encoder.at(None, place):
            left = transpose(inner[v], permutation=(0, 2, 1, 3)) if cached else inner[v]
        encoder.output(name, left)
        given[v] = decoder.input(name, left.type)
        with decoder.at(None, place):
            given[v] = cache_read(given[v]) if cached else given[v]
    outer = clone(late, decoder, given)
    for name, v in graph.outputs.items():
        if v not in inner:
            decoder.output(name, outer[v])
    once = (Slot(name, "", Growth.once, decoder.inputs[name].type, first=name) for name in frontier.values())
    decoder.stream, decoder.slots = stream, (*graph.slots, *once)
    return encoder, decoder


def _dependents(graph: Graph, roots: list[Value]) -> dict[Node, None]:
    known = set(roots)
    late: dict[Node, None] = {}
    for node in graph:
        if any(v in known for v in node.arguments):
            late[node] = None
            known.update(node.outputs)
    return late


def _frontier(graph: Graph, late: dict[Node, None]) -> dict[Value, str]:
    """Encoder values that decoder nodes read, with the names they travel under."""
    names: dict[Value, str] = {}
    cross = 0
    for node in late:
        both = {node.value(k): label for k, label in node.op.keys.items()}
        if both and all(v.producer and v.producer not in late and _depends_on_input(v) for v in both):
            for v, label in both.items():
                names.setdefault(v, encoded(cross, label))
            cross += 1
    for node in late:
        for v in node.arguments:
            if v.dtype.is_float and v.producer is not None and v.producer not in late and _depends_on_input(v):
                names.setdefault(v, encoded(len(names)))
    return names


def _depends_on_input(v: Value) -> bool:
    """False for constants and parameter expressions: the decoder has them too."""
    return not all(leaf.is_param for leaf in leaves(v))
