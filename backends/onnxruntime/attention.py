"""Attention on ONNX Runtime: what its fused kernels can say, and the passes that say it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...ir.graph import Graph, Node, Value
from ...ir.ops.attention import Attention
from ...ir.ops.cache import CacheAppend, CacheRead
from ...ir.ops.elementwise import Cast, Constant, Mul, cast
from ...ir.ops.linear import Linear
from ...ir.ops.logic import less
from ...ir.ops.position import Rope
from ...ir.ops.shape import Concat, Expand, Reshape, Slice, reshape
from ...ir.slots import PAST, TOKENS
from ...ir.types import Dim, DimLike, TensorType, i32, i64
from ...passes.dce import dce
from ...passes.left_padding import passes_over
from ...passes.narrow_cache import narrow_of
from ...passes.pack import pack_linears
from ...passes.pattern import NearMiss, Report
from ..onnx.rewrites import Appended, appended
from ..target import Target
from .choices import choices_of
from .ops import group_query_attention, rotary_table

LENGTHS, TOTAL = "lengths", "total_length"
"""Inputs of the graph that trusts its prompts to be padded on the right: i32 [B] valid tokens a row, i32 [] most."""


@dataclass(frozen=True)
class Cached:
    """A causal attention over a cache, as GroupQueryAttention takes it apart.

    q, k, v: [B,S,heads*D] before rotation where `rope` is the rotation the kernel does itself, else after.
    packed: the value that q, k and v are slices of, side by side. window: of the slots of keys and values (0: none).
    scales: of keys and values that are remembered in 8 bits. between: nodes that widen those.
    """

    node: Node
    q: Value
    k: Value
    v: Value
    keys: Appended
    values: Appended
    rope: Node | None
    packed: Value | None
    window: int
    scales: tuple[Value, Value] | None = None
    between: tuple[Node, ...] = ()

    @property
    def heads(self) -> int:
        heads = self.node.value("q").shape[2]
        assert isinstance(heads, int)
        return heads

    @property
    def width(self) -> int:
        width = self.node.value("q").shape[3]
        assert isinstance(width, int)
        return width


def cached(node: Node, target: Target) -> Cached | str:
    """How GroupQueryAttention of the target computes this attention, or why it cannot."""
    q, k, v, mask = node.value("q"), node.value("k"), node.value("v"), node["mask"]
    if node["bias"] is not None:
        return "it has a bias over keys, which GroupQueryAttention does not place by row in a ragged batch"
    if node["lengths"] is not None:
        return "it has lengths of its own beside the cache"
    narrow = narrow_of(k, node), narrow_of(v, node)
    keys, values = (
        appended(x, node) if n is None else Appended(n.past, n.new, n.append, n.read)
        for x, n in zip((k, v), narrow, strict=True)
    )
    if keys is None or values is None or (narrow[0] is None) != (narrow[1] is None):
        return "keys and values do not come straight out of a cache"
    if k.shape[3] != v.shape[3]:
        return f"values are {v.shape[3]} wide but keys {k.shape[3]}"
    if not isinstance(k.shape[3], int) or k.shape[3] % 8:
        return f"heads are {k.shape[3]} wide, not a multiple of 8"
    if not target.has("GroupQueryAttention", q.dtype):
        return f"there is no GroupQueryAttention in {q.dtype} on {target.provider}"
    if mask is not None and not is_key_mask(mask, k.shape[1]):
        return "its mask is not the key padding mask of the inputs"
    window = window_of(keys.past)
    rope = None if window else _common_rope(q, keys.new)
    turned = (q, keys.new) if rope is None else (unturned(q), unturned(keys.new))
    q, k, v = _flat(turned[0]), _flat(turned[1]), _flat(values.new)
    found = Cached(node, q, k, v, keys, values, rope, _packed([q, k, v]), window)
    if narrow[0] is None or narrow[1] is None:
        return found
    scales, between = (narrow[0].scale, narrow[1].scale), (*narrow[0].between, *narrow[1].between)
    return replace(found, scales=scales, between=between)


def window_of(past: Value) -> int:
    """The window of the slot that brings a value; 0 if it brings all tokens."""
    return next((s.window for s in past.graph.slots if s.input == past.name), 0)


def unturned(x: Value) -> Value:
    """What goes into the rotation that makes `x`."""
    assert x.producer is not None
    return x.producer.value("x")


def is_key_mask(mask: Value, keys: DimLike) -> bool:
    """Whether a mask bool [B,1,1,T] is the stream's mask over `keys` keys, or the end of it, and nothing else."""
    chain = key_mask_chain(mask)
    stream = mask.graph.stream or TOKENS
    if not chain or mask.shape != (mask.shape[0], 1, 1, keys):
        return False
    source = chain[-1].value("x")
    return source.graph.inputs.get(stream.mask) is source


def key_mask_chain(mask: Value) -> list[Node]:
    """The nodes between a mask bool [B,1,1,T] and the 0/1 input it is: reshape, cast and perhaps a slice."""
    chain: list[Node] = []
    v = mask
    for kind in (Reshape, Cast, Slice):
        node = v.producer
        if node is not None and isinstance(node.op, kind):
            chain.append(node)
            v = node.value("x")
        elif kind is not Slice:
            return []
    return chain


def _common_rope(q: Value, k: Value) -> Node | None:
    """The rotation of q if k has the same one and the kernel does such: by the positions input, R a multiple of 16."""
    a, b = q.producer, k.producer
    if a is None or b is None or not isinstance(a.op, Rope) or a.op is not b.op or a.attributes != b.attributes:
        return None
    positions, frequencies = a.value("positions"), a.value("frequencies")
    stream = positions.graph.stream or TOKENS
    same = all(a[name] is b[name] for name in ("positions", "frequencies"))
    if not same or positions.graph.inputs.get(stream.positions) is not positions:
        return None
    plain = frequencies.producer is not None and isinstance(frequencies.producer.op, Constant)
    turned = 2 * frequencies.shape[0]
    whole = isinstance(turned, int) and turned % 16 == 0 and isinstance(q.shape[3], int) and q.shape[3] % 16 == 0
    return a if plain and whole else None


def _flat(x: Value) -> Value:
    """x [B,S,H,D] as [B,S,H*D], without a node where it was just taken apart."""
    batch, length, heads, width = x.shape
    if x.producer is not None and isinstance(x.producer.op, Reshape):
        before = x.producer.value("x")
        if before.shape == (batch, length, heads * width):
            return before
    return x


def _packed(flat: Sequence[Value]) -> Value | None:
    """The packed projection, if q, k and v are its three consecutive slices."""
    slices = [x.producer for x in flat]
    if any(n is None or not isinstance(n.op, Slice) or n.attributes["axis"] != -1 for n in slices):
        return None
    sources = {n.value("x") for n in slices if n is not None}
    spans = [(n.attributes["start"], n.attributes["length"]) for n in slices if n is not None]
    end: Any = 0
    for start, length in spans:
        if start != end:
            return None
        end = start + length
    (source, *others) = sources
    return source if not others and source.rank == 3 and source.shape[-1] == end else None


_CARRIES = (CacheAppend, CacheRead, Concat, Expand, Cast, Mul)
"""Ops between what is remembered and the attention that reads it."""


def cached_attentions(graph: Graph) -> list[Node]:
    """The attentions of a graph with slots that read what is remembered."""
    growing = {graph.inputs[s.input] for s in graph.slots if s.axis is not None and s.output}
    found: list[Node] = []
    reached: set[Value] = set(growing)
    for node in graph:
        if isinstance(node.op, Attention):
            if node["k"] in reached or node["v"] in reached:
                found.append(node)
        elif isinstance(node.op, _CARRIES) and reached.intersection(node.arguments):
            reached.update(node.outputs)
    return found


class PackProjections:
    """Query, key and value projections side by side, wherever GroupQueryAttention then takes them undivided.

    Only there: split apart again, a packed product is slower than three (6% at 512 tokens).
    """

    name = "pack_projections"

    def __init__(self, target: Target) -> None:
        self.target = target

    def run(self, graph: Graph) -> Report:
        count = 0
        for node in cached_attentions(graph):
            found = cached(node, self.target)
            if isinstance(found, str) or found.packed is not None:
                continue
            linears = [x.producer for x in (found.q, found.k, found.v)]
            if all(n is not None and isinstance(n.op, Linear) and len(n.output.users) == 1 for n in linears):
                count += len(set(linears)) == 3 and pack_linears(graph, [n for n in linears if n is not None])
        dce(graph)
        return Report({self.name: count})


class GroupQuery:
    """Every cached attention => GroupQueryAttention over shared buffers; the mask becomes lengths.

    All of them or none: a cache that the kernel does not write in place would need the other kind of graph.
    The result is right for prompts padded on the right only. A session looks at each mask and takes the other
    graph for any other. A window has a buffer and lengths of its own, so the kernel does not rotate there.
    """

    name = "ort_group_query_attention"

    def __init__(self, target: Target, positions: int) -> None:
        self.target, self.positions = target, positions

    def run(self, graph: Graph) -> Report:
        nodes = cached_attentions(graph)
        found = [cached(node, self.target) for node in nodes]
        misses = [
            NearMiss(self.name, n.location, f, 1, 1, frozenset(), True)
            for n, f in zip(nodes, found, strict=True)
            if isinstance(f, str)
        ]
        fits = self.alike(graph, [self.affordable(f) for f in found if not isinstance(f, str)])
        outside = self.outside(graph, fits) if fits and not misses else None
        if outside is not None:
            misses = [NearMiss(self.name, outside[0].location, outside[1], 1, 1, frozenset(), True)]
        if misses or not fits:
            return Report({self.name: 0, "could_be_fused": len(fits)}, misses)
        self.rewrite(graph, fits)
        return Report({self.name: len(fits)})

    def affordable(self, f: Cached) -> Cached:
        """Without the rotation in the kernel where its table would cost more than what it saves."""
        if f.rope is None or self.positions * f.width <= choices_of(self.target).rotary_table:
            return f
        return self.turned(f)

    def alike(self, graph: Graph, fits: list[Cached]) -> list[Cached]:
        """Without the rotation in the kernel, which knows lengths only, where something else reads positions: all of
        a graph takes them from the same place. Beside windows and states sessions give no others than those."""
        stream = graph.stream or TOKENS
        positions = graph.inputs.get(stream.positions)
        turning = {n for f in fits if f.rope is not None for n in (f.rope, f.keys.new.producer)}
        if positions is None or any(f.window for f in fits) or turning.issuperset(positions.users):
            return fits
        return [f if f.rope is None else self.turned(f) for f in fits]

    def turned(self, f: Cached) -> Cached:
        """With the rotation ahead of the kernel."""
        q, k = (_flat(x) for x in (f.node.value("q"), f.keys.new))
        return replace(f, q=q, k=k, rope=None, packed=None)

    def outside(self, graph: Graph, fits: Sequence[Cached]) -> tuple[Node, str] | None:
        """A node besides the caches and masks of the attentions that needs to know how long the past is."""
        inside = {f.node for f in fits} | {n for f in fits for s in (f.keys, f.values) for n in (s.append, s.read)}
        inside.update(n for f in fits for n in f.between)
        for f in fits:
            mask = f.node["mask"]
            inside.update(key_mask_chain(mask) if mask is not None else ())
        stream = graph.stream or TOKENS
        mask = graph.inputs.get(stream.mask)
        grown = (slot.type.shape[slot.axis] for slot in graph.slots if slot.axis is not None)
        pasts = {PAST, *(s for d in grown if isinstance(d, Dim) for s in d.symbols)}
        for node in graph:
            if node.op.states and (mask is None or not passes_over(node, mask)):
                return node, f"{node.op.name} is not told which tokens of a padded prompt count"
            if node not in inside and not _is_new_mask(node) and pasts & _lengths_named(node):
                return node, f"{node.op.name} depends on the length of the past, which a shared buffer does not show"
        return None

    def rewrite(self, graph: Graph, fits: Sequence[Cached]) -> None:
        batch = fits[0].q.shape[0]
        counts: dict[int, tuple[Value, Value]] = {}
        for window in sorted({f.window for f in fits}):
            lengths, total = counted_in(window)
            types = TensorType(i32, (batch,)), TensorType(i32, ())
            counts[window] = graph.input(lengths, types[0]), graph.input(total, types[1])
        for f in fits:
            with graph.at(f.node):
                results = self.attention(f, *counts[f.window])
            for old, new in zip((f.node.output, f.keys.append.output, f.values.append.output), results, strict=True):
                graph.replace(old, new)
            for node in (f.node, *reversed(f.between), f.keys.read, f.values.read, f.keys.append, f.values.append):
                if node.order >= 0:
                    graph.erase(node)
        dce(graph)
        self.mask_of_new(graph)
        stream = graph.stream or TOKENS
        for name in (stream.positions, stream.mask):
            if name in graph.inputs and not graph.inputs[name].uses:
                del graph.inputs[name]

    def mask_of_new(self, graph: Graph) -> None:
        """Which of the new tokens count, for layers that go from one to the next: those before the end of their row."""
        found = [n for n in graph if _is_new_mask(n)]
        if not found:
            return
        stream = graph.stream or TOKENS
        mask = found[0].output
        batch = mask.shape[0]
        # Where all buffers are those of windows, theirs are no lengths of rows.
        lengths = graph.input_of(LENGTHS, TensorType(i32, (batch,)))
        positions = graph.input_of(stream.positions, TensorType(i64, mask.shape))
        with graph.at(found[0]):
            valid = less(positions, reshape(cast(lengths, dtype=i64), shape=(batch, 1)))
            new = cast(valid, dtype=mask.dtype)
        for node in found:
            graph.replace(node.output, new)
        dce(graph)

    def attention(self, f: Cached, lengths: Value, total: Value) -> tuple[Value, Value, Value]:
        q4, sinks, a = f.node.value("q"), f.node["sinks"], f.node.attributes
        batch, rows, heads, width = q4.shape
        q, k, v = (reshape(x, shape=(batch, rows, -1)) if x.rank == 4 else x for x in (f.q, f.k, f.v))
        table: list[Value | None] = [None, None]
        interleaved = False
        if f.rope is not None:
            frequencies = f.rope.value("frequencies").producer
            assert frequencies is not None
            interleaved = f.rope.attributes["interleaved"]
            given = {"frequencies": frequencies.attributes["value"], "scale": f.rope.attributes["scale"]}
            table = [rotary_table(**given, length=self.positions, sine=s, dtype=q4.dtype) for s in (False, True)]
        q, k, v = (q, k, v) if f.packed is None else (f.packed, None, None)
        y, keys, values = group_query_attention(
            q, f.keys.past, f.values.past, lengths, total, k, v, table[0], table[1], sinks, *(f.scales or ()),
            heads=f.heads, scale=a["scale"], window=a["window"], softcap=a["softcap"], interleaved=interleaved,
        )  # fmt: skip
        return reshape(y, shape=(batch, rows, heads, width)), keys, values


def counted_in(window: int) -> tuple[str, str]:
    """Inputs (tokens of each row, their most) of the buffers of a window; 0: of those that hold all tokens."""
    return (f"{LENGTHS}.{window}", f"{TOTAL}.{window}") if window else (LENGTHS, TOTAL)


def _is_new_mask(node: Node) -> bool:
    """Whether a node takes the part of the stream's mask that is about the new tokens."""
    stream = node.outputs[0].graph.stream or TOKENS
    source = node.value("x") if isinstance(node.op, Slice) else None
    if source is None or source.graph.inputs.get(stream.mask) is not source:
        return False
    return node.output.shape[1:] == (Dim.symbol(stream.length),)


def _lengths_named(node: Node) -> frozenset[str]:
    """Symbols in the types and attributes of a node."""
    dims = [d for d in node.attributes.values() if isinstance(d, Dim)]
    return frozenset(s for v in node.outputs for s in v.type.symbols) | {s for d in dims for s in d.symbols}
