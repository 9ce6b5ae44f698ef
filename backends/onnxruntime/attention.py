"""Attention on ONNX Runtime: what its fused kernels can say, and the passes that say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.graph import Graph, Node, Value
from ...ir.ops.elementwise import cast
from ...ir.ops.shape import reshape
from ...ir.types import Dim, DType, TensorType, bool_, i32
from ...passes.cache import PAST, self_attentions
from ...passes.dce import dce
from ...passes.pack import pack_linears
from ...passes.pattern import NearMiss, Report
from ..onnx.rewrites import Appended, appended
from .ops import group_query_attention, multi_head_attention, rotary_table

LENGTHS, TOTAL = "lengths", "total_length"
"""Inputs of the graph that trusts its prompts to be padded on the right: i32 [B] valid tokens a row, i32 [] most."""


@dataclass(frozen=True)
class Cached:
    """A causal attention over a cache, as GroupQueryAttention takes it apart.

    q, k, v: [B,S,heads*D] before rotation where `rope` is the rotation the kernel does itself, else after.
    packed: the value that q, k and v are slices of, side by side.
    """

    node: Node
    q: Value
    k: Value
    v: Value
    keys: Appended
    values: Appended
    rope: Node | None
    packed: Value | None
    mask: Value | None

    @property
    def heads(self) -> int:
        heads = self.node.operands[0]
        assert heads is not None and isinstance(heads.shape[2], int)
        return heads.shape[2]


def cached(node: Node) -> Cached | str:
    """How GroupQueryAttention computes this attention, or why it cannot."""
    q, k, v, bias, mask, lengths, _ = node.operands
    assert q is not None and k is not None and v is not None
    if bias is not None:
        return "it has a bias over keys, which GroupQueryAttention does not place by row in a ragged batch"
    if lengths is not None:
        return "it has lengths of its own beside the cache"
    keys, values = appended(k, node), appended(v, node)
    if keys is None or values is None:
        return "keys and values do not come straight out of a cache"
    if k.shape[3] != v.shape[3]:
        return f"values are {v.shape[3]} wide but keys {k.shape[3]}"
    if not isinstance(k.shape[3], int) or k.shape[3] % 8:
        return f"heads are {k.shape[3]} wide, not a multiple of 8"
    if q.dtype not in (DType.f32, DType.f16):
        return f"there is no GroupQueryAttention in {q.dtype}"
    source = None
    if mask is not None:
        source = key_mask_input(mask)
        if source is None or source.shape[1] != k.shape[1]:
            return "its mask is not the key padding mask of the inputs"
    rope = _common_rope(q, keys.new)
    turned = (q, keys.new) if rope is None else (q.producer.operands[0], keys.new.producer.operands[0])  # type: ignore[union-attr]
    flat = [_flat(x) for x in (*turned, values.new)]
    return Cached(node, *flat, keys, values, rope, _packed(flat), source)  # type: ignore[arg-type]


def key_mask_input(mask: Value) -> Value | None:
    """The 0/1 input [B,T] behind a mask bool [B,1,1,T], if that is all the mask is."""
    if mask.producer is None or mask.producer.op.name != "reshape":
        return None
    (kept,) = mask.producer.arguments
    if kept.rank != 2 or mask.shape != (kept.shape[0], 1, 1, kept.shape[1]) or kept.producer is None:
        return None
    source = kept.producer.arguments[0] if kept.producer.op.name == "cast" and kept.dtype == bool_ else None
    return source if source is not None and source.graph.inputs.get(source.name) is source else None


def _common_rope(q: Value, k: Value) -> Node | None:
    """The rotation of q if k has the same one and the kernel does such: by the positions input, R a multiple of 16."""
    a, b = q.producer, k.producer
    if a is None or b is None or a.op.name != "rope" or b.op.name != "rope" or a.attributes != b.attributes:
        return None
    _, positions, frequencies = a.arguments
    if a.arguments[1:] != b.arguments[1:] or positions.graph.inputs.get(positions.name) is not positions:
        return None
    plain = frequencies.producer is not None and frequencies.producer.op.name == "constant"
    turned = 2 * frequencies.shape[0]
    whole = isinstance(turned, int) and turned % 16 == 0 and isinstance(q.shape[3], int) and q.shape[3] % 16 == 0
    return a if plain and whole else None


def _flat(x: Value) -> Value:
    """x [B,S,H,D] as [B,S,H*D], without a node where it was just taken apart."""
    batch, length, heads, width = x.shape
    if x.producer is not None and x.producer.op.name == "reshape":
        (before,) = x.producer.arguments
        if before.shape == (batch, length, heads * width):
            return before
    return x


def _packed(flat: Sequence[Value]) -> Value | None:
    """The value of which the three are consecutive slices that leave nothing over."""
    slices = [x.producer for x in flat]
    if any(n is None or n.op.name != "slice" or n.attributes["axis"] != -1 for n in slices):
        return None
    sources = {n.arguments[0] for n in slices if n is not None}
    spans = [(n.attributes["start"], n.attributes["length"]) for n in slices if n is not None]
    end: Any = 0
    for start, length in spans:
        if start != end:
            return None
        end = start + length
    (source, *others) = sources
    return source if not others and source.rank == 3 and source.shape[-1] == end else None


class PackProjections:
    """Query, key and value projections side by side, wherever GroupQueryAttention then takes them undivided.

    Only there: split apart again, a packed product is slower than three (6% at 512 tokens).
    """

    name = "pack_projections"

    def run(self, graph: Graph) -> Report:
        count = 0
        for node in self_attentions(graph):
            found = cached(node)
            if isinstance(found, str) or found.packed is not None:
                continue
            linears = [x.producer for x in (found.q, found.k, found.v)]
            if all(n is not None and n.op.name == "linear" and len(n.output.users) == 1 for n in linears):
                count += len(set(linears)) == 3 and pack_linears(graph, [n for n in linears if n is not None])
        dce(graph)
        return Report({self.name: count})


class GroupQuery:
    """Every cached attention => GroupQueryAttention over shared buffers; the mask becomes lengths.

    All of them or none: one cache that grows beside others that do not would need both kinds of graph at once.
    The result is right for prompts padded on the right only. A session looks at each mask and takes the other
    graph for any other.
    """

    name = "ort_group_query_attention"

    def __init__(self, positions: int) -> None:
        self.positions = positions

    def run(self, graph: Graph) -> Report:
        found = [cached(node) for node in self_attentions(graph)]
        nodes = [n for n, f in zip(self_attentions(graph), found, strict=True) if isinstance(f, str)]
        misses = [
            NearMiss(self.name, n.location, str(reason), 1, 1, frozenset(), True)
            for n, reason in zip(nodes, [f for f in found if isinstance(f, str)], strict=True)
        ]
        fits = [f for f in found if not isinstance(f, str)]
        outside = self.outside(graph, fits) if fits and not misses else None
        if outside is not None:
            misses = [NearMiss(self.name, outside[0].location, outside[1], 1, 1, frozenset(), True)]
        if misses or not fits:
            return Report({self.name: 0, "could_be_fused": len(fits)}, misses)
        self.rewrite(graph, fits)
        return Report({self.name: len(fits)})

    def outside(self, graph: Graph, fits: Sequence[Cached]) -> tuple[Node, str] | None:
        """A node besides the caches and masks of the attentions that needs to know how long the past is."""
        inside = {f.node for f in fits} | {n for f in fits for s in (f.keys, f.values) for n in (s.append, s.read)}
        for f in fits:
            mask = f.node.operands[4]
            while mask is not None and mask.producer is not None:
                inside.add(mask.producer)
                mask = mask.producer.arguments[0]
        for node in graph:
            if node not in inside and any(PAST.symbols & v.type.symbols for v in node.outputs):
                return node, f"{node.op.name} depends on the length of the past, which a shared buffer does not show"
        return None

    def rewrite(self, graph: Graph, fits: Sequence[Cached]) -> None:
        batch = fits[0].q.shape[0]
        lengths, total = graph.input(LENGTHS, TensorType(i32, (batch,))), graph.input(TOTAL, TensorType(i32, ()))
        for f in fits:
            with graph.at(f.node):
                results = self.attention(f, lengths, total)
            for old, new in zip((f.node.output, f.keys.append.output, f.values.append.output), results, strict=True):
                graph.replace(old, new)
            for node in (f.node, f.keys.read, f.values.read, f.keys.append, f.values.append):
                if node.order >= 0:
                    graph.erase(node)
        dce(graph)
        for name in {"position_ids", "decoder_position_ids", *(f.mask.name for f in fits if f.mask is not None)}:
            if name in graph.inputs and not graph.inputs[name].uses:
                del graph.inputs[name]

    def attention(self, f: Cached, lengths: Value, total: Value) -> tuple[Value, Value, Value]:
        q4, sinks, a = f.node.operands[0], f.node.operands[6], f.node.attributes
        assert q4 is not None
        batch, rows, heads, width = q4.shape
        q, k, v = (reshape(x, shape=(batch, rows, -1)) if x.rank == 4 else x for x in (f.q, f.k, f.v))
        table: list[Value | None] = [None, None]
        interleaved = False
        if f.rope is not None:
            frequencies = f.rope.arguments[2].producer
            assert frequencies is not None
            interleaved = f.rope.attributes["interleaved"]
            given = {"frequencies": frequencies.attributes["value"], "scale": f.rope.attributes["scale"]}
            table = [rotary_table(**given, length=self.positions, sine=s, dtype=q4.dtype) for s in (False, True)]
        new = (None, None) if f.packed is not None else (k, v)
        y, *presents = group_query_attention(
            q if f.packed is None else f.packed, f.keys.past, f.values.past, lengths, total, *new, *table, sinks,
            heads=f.heads, scale=a["scale"], window=a["window"], softcap=a["softcap"], interleaved=interleaved,
        )  # fmt: skip
        return reshape(y, shape=(batch, rows, heads, width)), *presents


class MultiHead:
    """Attention without causality and with nothing but a key mask => MultiHeadAttention."""

    name = "ort_multi_head_attention"

    def run(self, graph: Graph) -> Report:
        report = Report({self.name: 0})
        for node in graph:
            if node.op.name != "attention" or node.attributes["causal"]:
                continue
            reason = self.reason(node)
            if reason is None:
                with graph.at(node):
                    graph.replace(node.output, self.attention(node))
                graph.erase(node)
                report.counts[self.name] += 1
            else:
                report.misses.append(NearMiss(self.name, node.location, reason, 1, 1, frozenset(), True))
        return report

    def reason(self, node: Node) -> str | None:
        q, k, _, bias, mask, lengths, sinks = node.operands
        assert q is not None and k is not None
        if q.shape[2] != k.shape[2]:
            return f"{q.shape[2]} query heads share {k.shape[2]} key heads, and the kernel wants one each"
        given = {"a bias": bias, "lengths": lengths, "sinks": sinks, "a softcap": node.attributes["softcap"]}
        extra = [name for name, x in given.items() if x is not None]
        if extra:
            return f"it has {' and '.join(extra)}"
        if q.dtype != DType.f32:
            return f"there is no MultiHeadAttention in {q.dtype} on every provider"
        batch, keys = k.shape[:2]
        if mask is not None and mask.shape != (batch, 1, 1, keys):
            return f"its mask {mask.type} is not one over keys, [{batch},1,1,{keys}]"
        return None

    def attention(self, node: Node) -> Value:
        q, k, v, _, mask, *_ = node.operands
        assert q is not None and k is not None and v is not None
        keys = None if mask is None else cast(reshape(mask, shape=(mask.shape[0], mask.shape[3])), dtype=i32)
        flat = [reshape(x, shape=(x.shape[0], x.shape[1], -1)) for x in (q, k, v)]
        heads = q.shape[2]
        assert isinstance(heads, int)
        y = multi_head_attention(*flat, keys, heads=heads, scale=node.attributes["scale"])
        return reshape(y, shape=node.output.shape)


def windows(graph: Graph) -> bool:
    """Whether any causal attention drops old keys."""
    return any(n.attributes["window"] is not None for n in self_attentions(graph))


def past_layers(graph: Graph) -> list[tuple[int, int, int]]:
    """(key heads, key width, value width) of each layer's cache, from the inputs past_key_values.N.key and .value."""
    found: list[tuple[int, int, int]] = []
    while f"past_key_values.{len(found)}.key" in graph.inputs:
        keys, values = (graph.inputs[f"past_key_values.{len(found)}.{n}"].shape for n in ("key", "value"))
        sizes = (keys[1], keys[3], values[3])
        assert not any(isinstance(d, Dim) for d in sizes)
        found.append(sizes)  # type: ignore[arg-type]
    return found
