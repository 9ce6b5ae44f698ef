"""Insert the KV cache: past keys and values come in, the longer ones go out, masks grow by the past."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ..ir.errors import PassError
from ..ir.graph import Graph, Node, Value
from ..ir.ops import cache_append, cache_read, transpose
from ..ir.ops.reduce import Argmax, Reduce, Softmax
from ..ir.types import Dim, DimLike, TensorType
from ..ir.value import ancestors
from .dce import dce

PAST = Dim.symbol("P")
"""Number of tokens already in the cache."""


def self_attentions(graph: Graph) -> list[Node]:
    """Causal attentions, in order: those whose keys and values are worth keeping."""
    return [n for n in graph if n.op.name == "attention" and n.attributes["causal"]]


def add_cache(graph: Graph) -> int:
    """Give every causal attention N the inputs past_key_values.N.key/value [B,K,P,D] and the outputs present.N.*.

    Keys and values of the S new tokens are appended to the P past ones; attention then sees T = P + S keys, and
    the mask input over keys becomes [B,P+S]. Positions are explicit inputs, so nothing else moves.
    Gives the number of attentions. Raises PassError when a mask cannot be lengthened, and for a node that needs all
    tokens where there are only the new ones.
    """
    grown: dict[Value, Value] = {}
    given = list(graph.inputs.values())
    attentions = self_attentions(graph)
    for index, node in enumerate(attentions):
        rows = _operand(node, "q").shape[1]
        for name, i in (("key", 1), ("value", 2)):
            new = node.operands[i]
            assert new is not None
            batch, _, heads, width = new.shape
            past = graph.input(f"past_key_values.{index}.{name}", TensorType(new.dtype, (batch, heads, PAST, width)))
            with graph.at(node):
                present = cache_append(past, new)
                graph.set_operand(node, i, cache_read(present))
            graph.output(f"present.{index}.{name}", present)
        for name in ("mask", "bias", "lengths"):
            _grow_operand(graph, node, name, rows, grown)
    dce(graph)
    for old in set(given) - set(graph.inputs.values()):
        for reader in old.users:
            what = f"input {old.name} is a mask over keys and grows with the cache, but {reader.op.name} reads it too"
            raise PassError(what, place=str(reader.location))
    _check_rest(graph, attentions)
    return len(attentions)


def _check_rest(graph: Graph, attentions: list[Node]) -> None:
    """Refuse what no cache helps: positions counted from 0, and other ways to mix tokens than causal attention."""
    rows = {s for node in attentions for s in _symbols(_operand(node, "q").shape[1])}
    for node in graph:
        over = None if node in attentions else _mixed(node)
        if over is not None and rows & _symbols(over) and not PAST.symbols & _symbols(over):
            what = f"{node.op.name} runs over all {over} tokens, and with a cache would run over the new ones only"
            raise PassError(what, place=str(node.location))


def _symbols(d: DimLike) -> frozenset[str]:
    return d.symbols if isinstance(d, Dim) else frozenset()


def _mixed(node: Node) -> DimLike | None:
    """The length that a node sums, compares or counts over; None for an op that does neither."""
    if node.op.name == "attention":
        return _operand(node, "k").shape[1]
    if node.op.name == "iota":
        return node.attributes["length"]
    if node.op.name == "matmul":
        return node.arguments[0].shape[-1]
    if isinstance(node.op, (Reduce, Argmax, Softmax)):
        axis: int = node.attributes["axis"]
        return node.arguments[0].shape[axis]
    return None


def emit_cache(graph: Graph) -> int:
    """For prompts alone: keys and values of every causal attention N go out as present.N.key/value [B,K,S,D].

    Nothing comes in, so this is what `add_cache` gives at P = 0. Gives the number of attentions.
    """
    attentions = self_attentions(graph)
    for index, node in enumerate(attentions):
        for name, i in (("key", 1), ("value", 2)):
            new = node.operands[i]
            assert new is not None
            with graph.at(node):
                graph.output(f"present.{index}.{name}", transpose(new, permutation=(0, 2, 1, 3)))
    return len(attentions)


def _operand(node: Node, name: str) -> Value:
    v = node.operands[node.op.signature.operands.index(name)]
    assert v is not None
    return v


def _grow_operand(graph: Graph, node: Node, name: str, rows: DimLike, grown: dict[Value, Value]) -> None:
    i = node.op.signature.operands.index(name)
    mask = node.operands[i]
    if mask is None or (mask.shape[-1] == 1 and name != "lengths"):
        return
    if mask not in grown:
        grown[mask] = _grow(graph, mask, rows, node)
    graph.set_operand(node, i, grown[mask])


def _grow(graph: Graph, mask: Value, rows: DimLike, reader: Node) -> Value:
    """Rebuild the expression of a mask over `rows` keys for P + rows keys, from its input on."""
    place = str(reader.location)
    if not isinstance(rows, Dim) or rows.name is None:
        raise PassError(f"query length {rows} is not one symbol, so the cache cannot tell past from new", place=place)
    if mask.rank >= 2 and mask.shape[-2] != 1:
        what = f"mask {mask.type} depends on the query: give attention a mask over keys and causal=True"
        raise PassError(what, place=place)
    longer: Mapping[str, DimLike] = {rows.name: PAST + rows}
    mapping: dict[Value, Value] = {}
    for node in ancestors(mask):
        for v in node.arguments:
            if v.producer is None and v not in mapping:
                mapping[v] = _longer_input(graph, v, longer, place)
        attributes = {k: _longer(a, longer) for k, a in node.attributes.items()}
        with graph.at(reader, node.location):
            outputs = graph.add(node.op, [v and mapping[v] for v in node.operands], attributes)
        mapping.update(zip(node.outputs, outputs, strict=True))
    return mapping[mask] if mask in mapping else _longer_input(graph, mask, longer, place)


def _longer(attribute: Any, longer: Mapping[str, DimLike]) -> Any:
    if isinstance(attribute, tuple):
        return tuple(_longer(a, longer) for a in cast("tuple[Any, ...]", attribute))
    return attribute.substitute(longer) if isinstance(attribute, Dim) else attribute


def _longer_input(graph: Graph, v: Value, longer: Mapping[str, DimLike], place: str) -> Value:
    if v.type.substitute(longer) == v.type:
        return v
    if graph.inputs.get(v.name) is not v:
        now = graph.inputs.get(v.name)
        if now is not None and now.type == v.type.substitute(longer):
            return now
        raise PassError(f"a mask depends on {v!r}, which is not an input", place=place)
    graph.inputs[v.name] = new = Value(graph, v.type.substitute(longer), v.name)
    return new
