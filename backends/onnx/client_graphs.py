"""Graphs as other clients call them: positions and masks that they do not give, names that they look for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...frontends.dsl import Model
from ...frontends.task import FEATURES, HIDDEN, PIXELS, TOKEN_TYPES
from ...ir.clone import bring
from ...ir.errors import LoweringError
from ...ir.graph import Graph, Node, Value
from ...ir.ops import constant, expand, iota, reshape
from ...ir.slots import TARGETS, TOKENS, Growth, Slot
from ...ir.types import DimLike
from ...ir.value import leaves
from ...passes.dce import dce
from .clients import CAUSAL, CROSS, DECODER, ENCODER, MERGED, Layout, check_state, pairs_of

HIDDEN_STATES, SOURCE_MASK = "encoder_hidden_states", "encoder_attention_mask"
_SOURCE = {*TOKENS.names[:2], TOKEN_TYPES, PIXELS, FEATURES}


def client_graphs(
    layout: Layout, model: Model, kind: str, config: Mapping[str, Any], graphs: Mapping[str, Graph]
) -> dict[str, Graph]:
    """The graphs of a model as a client calls them, by name; those given are left as they were.

    An encoder-decoder gives a third one, CROSS, of the keys and values over its source, which `merged` puts into the
    decoder. kind, config: `model_type` and the whole of config.json. Raises LoweringError for a model whose state or
    inputs the client has no place for.
    """
    if DECODER in graphs:
        return _encoder_decoder(layout, kind, graphs[ENCODER].copy(), graphs[DECODER].copy())
    ((name, graph),) = ((k, g.copy()) for k, g in graphs.items())
    if model.task.name == CAUSAL:
        check_state(layout, graph, kind, config)
        known = {*TOKENS.names, *(s.input for s in graph.slots)}
    else:
        columns_inside(graph, TOKENS.positions, 0)
        known = _SOURCE
    _check_inputs(layout, graph, kind, known)
    return {name: graph}


def with_columns(graph: Graph) -> Graph:
    """A copy of an encoder's graph that counts columns itself: no client gives positions to an encoder."""
    graph = graph.copy()
    columns_inside(graph, TOKENS.positions, 0)
    return graph


def columns_inside(graph: Graph, name: str, start: DimLike) -> None:
    """Positions [B,S] that no client gives are made inside: columns from `start` on."""
    if name in graph.inputs:
        batch, length = graph.inputs[name].shape
        with graph.at(_first(graph)):
            made = expand(reshape(iota(start=start, length=length), shape=(1, length)), shape=(batch, length))
        _replace_input(graph, name, made)


def ones_inside(graph: Graph, name: str) -> None:
    """A mask that no client gives is made inside: all tokens count."""
    if name in graph.inputs:
        type = graph.inputs[name].type
        with graph.at(_first(graph)):
            made = expand(reshape(constant(value=1, dtype=type.dtype), shape=(1, 1)), shape=type.shape)
        _replace_input(graph, name, made)


def _encoder_decoder(layout: Layout, kind: str, encoder: Graph, decoder: Graph) -> dict[str, Graph]:
    pairs = pairs_of(layout, decoder.slots, kind)
    once = [s for s in decoder.slots if s.growth is Growth.once]
    for slot in once:
        if slot.type.rank != 4:
            what = f"{layout.client} has no place for {slot.input} {slot.type}, which {kind} takes from its encoder"
            raise LoweringError(what, place=kind)
    hidden = last_common(encoder, [encoder.outputs[s.first] for s in once])
    cross = _cross(encoder, hidden, once)
    encoder.outputs = {HIDDEN: hidden}
    dce(encoder)
    columns_inside(encoder, TOKENS.positions, 0)
    _drop_unread(encoder)
    _decoder_names(decoder, pairs, once)
    _check_inputs(layout, encoder, kind, _SOURCE)
    known = {TOKENS.ids, SOURCE_MASK, *(s.input for s in decoder.slots)}
    _check_inputs(layout, decoder, kind, known)
    return {ENCODER: encoder, MERGED: decoder, CROSS: cross}


def last_common(graph: Graph, values: list[Value]) -> Value:
    """The last value [B,S,C] through which all that the inputs tell gets to `values`.

    Raises LoweringError if there is none.
    """
    frontier = dict.fromkeys(values)
    while len(frontier) > 1 or next(iter(frontier)).rank != 3:
        latest = max(frontier, key=lambda v: -1 if v.producer is None else v.producer.order)
        if latest.producer is None:
            names = ", ".join(v.name for v in frontier)
            raise LoweringError(f"{graph.name} tells its decoder more than one hidden state: {names}")
        del frontier[latest]
        frontier |= {v: None for v in latest.producer.arguments if not all(leaf.is_param for leaf in leaves(v))}
        if not frontier:
            raise LoweringError(f"{graph.name} tells its decoder nothing that follows from its inputs")
    return next(iter(frontier))


def _cross(encoder: Graph, hidden: Value, once: list[Slot]) -> Graph:
    """Keys and values over the source, [B,K,S,D], from the last hidden state."""
    cross = Graph(f"{encoder.name}_cross")
    mapping = {hidden: cross.input(HIDDEN_STATES, hidden.type)}
    for i, slot in enumerate(once):
        cross.output(_cross_name(i, "present"), bring(encoder.outputs[slot.first], cross, mapping))
    extra = [k for k in cross.inputs if k != HIDDEN_STATES]
    if extra:
        raise LoweringError(f"{encoder.name}: keys and values over the source also follow from {', '.join(extra)}")
    return cross


def _cross_name(index: int, prefix: str) -> str:
    return f"{prefix}.{index // 2}.encoder.{'value' if index % 2 else 'key'}"


def _decoder_names(decoder: Graph, pairs: list[tuple[Slot, Slot]], once: list[Slot]) -> None:
    """Tokens, source mask and slots under the names of the ecosystem; masks and positions of targets made inside."""
    past = pairs[0][0].type.shape[pairs[0][0].axis or 0]
    stream = decoder.stream or TARGETS
    ones_inside(decoder, stream.mask)
    columns_inside(decoder, stream.positions, past)
    inputs, outputs, slots = {TOKENS.mask: SOURCE_MASK, stream.ids: TOKENS.ids}, dict[str, str](), list[Slot]()
    for i, pair in enumerate(pairs):
        for slot, part in zip(pair, ("key", "value"), strict=True):
            name, result = f"past_key_values.{i}.decoder.{part}", f"present.{i}.decoder.{part}"
            inputs[slot.input], outputs[slot.output] = name, result
            slots.append(Slot(name, result, slot.growth, slot.type, slot.axis, slot.window))
    for i, slot in enumerate(once):
        inputs[slot.input] = name = _cross_name(i, "past_key_values")
        slots.append(Slot(name, _cross_name(i, "present"), Growth.once, slot.type, 2))
    decoder.inputs = {inputs.get(k, k): v for k, v in decoder.inputs.items()}
    for name, value in decoder.inputs.items():
        value.name = name
    decoder.outputs = {outputs.get(k, k): v for k, v in decoder.outputs.items()}
    # Clients flatten a past by layer, and give its parts to the inputs in the order in which these are declared.
    decoder.slots, decoder.stream = tuple(sorted(slots, key=lambda s: int(s.input.split(".")[1]))), TOKENS
    dce(decoder)
    _drop_unread(decoder)
    state = [s.input for s in decoder.slots]
    first = [k for k in decoder.inputs if k not in state]
    decoder.inputs = {k: decoder.inputs[k] for k in (*first, *state)}


def _first(graph: Graph) -> Node | None:
    return next(iter(graph), None)


def _replace_input(graph: Graph, name: str, value: Value) -> None:
    graph.replace(graph.inputs[name], value)
    del graph.inputs[name]


def _drop_unread(graph: Graph) -> None:
    """Without inputs that nothing reads any more, but for slots and what says how long they are."""
    kept = {s.input for s in graph.slots}
    graph.inputs = {
        k: v for k, v in graph.inputs.items() if v.uses or k in kept or graph.is_output(v) or _dims(graph, v)
    }


def _dims(graph: Graph, value: Value) -> bool:
    return value.type.rank > 0 and value.name in (TOKENS.ids, PIXELS, FEATURES)


def _check_inputs(layout: Layout, graph: Graph, kind: str, known: set[str]) -> None:
    others = [k for k in graph.inputs if k not in known]
    if others:
        shown = ", ".join(f"{k} {graph.inputs[k].type}" for k in others)
        raise LoweringError(f"{layout.client} does not give {shown} to a {kind}", place=kind)
