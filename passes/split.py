"""Cut an encoder-decoder graph in two, so that the encoder and the cross-attention keys and values run once."""

from __future__ import annotations

from ..ir.clone import bring, clone
from ..ir.errors import PassError
from ..ir.graph import Graph, Node, Value
from ..ir.value import leaves

DECODER_INPUTS = ("decoder_input_ids", "decoder_attention_mask", "decoder_position_ids")


def split(graph: Graph) -> tuple[Graph, Graph]:
    """(encoder, decoder). What does not depend on decoder inputs goes to the encoder.

    Values the decoder needs from there become outputs of the one and inputs of the other:
    `encoder.N.key` / `encoder.N.value` [B,S,K,D] for cross-attention N, `encoder.N` for others. Masks are
    cheap: the source mask is an input of both. Raises PassError when there is nothing to cut.
    """
    late = _dependents(graph, [v for k, v in graph.inputs.items() if k in DECODER_INPUTS or k.startswith("past_")])
    if DECODER_INPUTS[0] not in graph.inputs:
        raise PassError(f"graph {graph.name} has no decoder inputs: expected {', '.join(DECODER_INPUTS)}")
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
    for v, name in frontier.items():
        encoder.output(name, inner[v])
    given = {v: decoder.input(name, v.type) for v, name in frontier.items()}
    outer = clone(late, decoder, given)
    for name, v in graph.outputs.items():
        if v not in inner:
            decoder.output(name, outer[v])
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
        if node.op.name == "attention" and all(v.producer and v.producer not in late for v in node.arguments[1:3]):
            for v, label in zip(node.arguments[1:3], ("key", "value"), strict=True):
                names.setdefault(v, f"encoder.{cross}.{label}")
            cross += 1
    for node in late:
        for v in node.arguments:
            if v.dtype.is_float and v.producer is not None and v.producer not in late and _depends_on_input(v):
                names.setdefault(v, f"encoder.{len(names)}")
    return names


def _depends_on_input(v: Value) -> bool:
    """False for constants and parameter expressions: the decoder has them too."""
    return not all(leaf.is_param for leaf in leaves(v))
