"""Layers that have one spelling once the graph is canonical, and the reshapes and packed weights around them."""

from __future__ import annotations

from ...ir import ops
from ...ir.graph import Graph, Node, Value
from ...ir.ops.elementwise import Mul
from ...ir.ops.feed_forward import FeedForward, GatedFeedForward, Gelu, Relu, Silu
from ...ir.ops.linear import Embedding, Linear
from ...ir.ops.norm import AddLayerNorm, AddRMSNorm
from ...ir.ops.shape import Reshape, Slice
from .. import fuse
from ..canonicalize import canonicalize
from ..cse import cse
from ..dce import dce
from ..manager import RewritePass
from ..pattern import Fuse
from .report import Raised, RaisingReport

_ACTIVATIONS = (Gelu, Silu, Relu)
_COUNTED = (Linear, Embedding, FeedForward, GatedFeedForward, AddLayerNorm, AddRMSNorm)


def _weight(w: Value, **_: object) -> bool | str:
    return w.is_param or f"{w!r} is not a parameter"


def _table(table: Value, **_: object) -> bool | str:
    return table.is_param or f"{table!r} is not a parameter"


def raise_layers(graph: Graph, report: RaisingReport) -> None:
    """Linear layers and embeddings, feed-forward blocks, and norms that take the residual sum."""
    known = {n for n in graph if isinstance(n.op, _COUNTED)}
    RewritePass("raise_layers", [Fuse(ops.linear, _weight), Fuse(ops.embedding, _table)]).run(graph)
    dce(graph)
    for step in (_sink_reshapes, canonicalize, dce, unpack_gates, straighten_gates, canonicalize, cse, dce):
        step(graph)
    for blocks in (fuse.BLOCKS, fuse.RESIDUALS):
        blocks.run(graph)
    dce(graph)
    made = (n for n in graph if isinstance(n.op, _COUNTED) and n not in known)
    report.raised += [Raised(n.op.name, n.location) for n in made]


def _sink_reshapes(graph: Graph) -> int:
    """A reshape of leading axes before a layer goes behind it, where others can join it. Gives how many."""
    moved = 0
    for node in graph:
        sources = _below_reshapes(node)
        if sources is None:
            continue
        with graph.at(node):
            (y,) = graph.add(node.op, [*sources, *node.operands[len(sources) :]], node.attributes)
            graph.replace(node.output, y if y.shape == node.output.shape else y.reshape(*node.output.shape))
        graph.erase(node)
        moved += 1
    return moved


def _below_reshapes(node: Node) -> list[Value] | None:
    """What reshapes of leading axes alone are made of that a node reads, if it works along the last axis."""
    last = isinstance(node.op, Slice) and node.attributes["axis"] == -1
    if not isinstance(node.op, (Linear, Mul, *_ACTIVATIONS)) and not last:
        return None
    read = node.arguments if isinstance(node.op, Mul) else node.arguments[:1]
    sources = [_before_reshapes(v) for v in read]
    moved = any(s is not v for s, v in zip(sources, read, strict=True))
    return sources if moved and len({x.shape for x in sources}) == 1 else None


def _before_reshapes(v: Value) -> Value:
    """The value above reshapes that leave the last axis alone."""
    while v.producer is not None and isinstance(v.producer.op, Reshape):
        x = v.producer.value("x")
        if not x.rank or not v.rank or x.shape[-1] != v.shape[-1]:
            break
        v = x
    return v


def unpack_gates(graph: Graph) -> int:
    """A linear layer whose halves are an activated gate and what it gates, as two layers over parts of its weight."""
    split = 0
    for node in graph:
        halves = _halves(node) if isinstance(node.op, Linear) and node.value("w").is_param else None
        if halves is None:
            continue
        x, w, b = node.value("x"), node.value("w"), node["b"]
        axis = -1 if node.attributes["transposed"] else -2
        for half in halves:
            start, length = half.attributes["start"], half.attributes["length"]
            with graph.at(half):
                own = ops.slice_(w, axis=axis, start=start, length=length)
                bias = None if b is None else ops.slice_(b, axis=-1, start=start, length=length)
                graph.replace(half.output, ops.linear(x, own, bias, transposed=node.attributes["transposed"]))
            graph.erase(half)
        split += 1
    return split


def straighten_gates(graph: Graph) -> int:
    """The three linear layers of a gated block read weights as [out, in], which is how the block takes them."""
    turned = 0
    for node in graph:
        if not isinstance(node.op, Mul):
            continue
        inner = [_linear_below(v) for v in node.arguments]
        users = node.output.users
        outer = users[0] if len(users) == 1 and isinstance(users[0].op, Linear) else None
        layers = [n for n in (*inner, outer) if n is not None]
        gated = any(v.producer is not None and isinstance(v.producer.op, _ACTIVATIONS) for v in node.arguments)
        if len(layers) < 3 or not gated:
            continue
        for layer in layers:
            turned += _straightened(graph, layer)
    return turned


def _linear_below(v: Value) -> Node | None:
    """The linear layer that makes a value, or what it activates."""
    node = v.producer
    if node is not None and isinstance(node.op, _ACTIVATIONS):
        node = node.value("x").producer
    return node if node is not None and isinstance(node.op, Linear) else None


def _straightened(graph: Graph, node: Node) -> int:
    if not node.attributes["transposed"] or node.order < 0:
        return 0
    with graph.at(node):
        w = ops.transpose(node.value("w"), permutation=(1, 0))
        graph.replace(node.output, ops.linear(node.value("x"), w, node["b"]))
    graph.erase(node)
    return 1


def _halves(node: Node) -> list[Node] | None:
    users = node.output.users
    if len(users) != 2:
        return None
    if not all(isinstance(u.op, Slice) and u.attributes["axis"] == -1 for u in users):
        return None
    if users[0].output.type != users[1].output.type:
        return None
    for gate, up in (users, users[::-1]):
        act = gate.output.users
        if len(act) == 1 and isinstance(act[0].op, _ACTIVATIONS):
            product = act[0].output.users
            if len(product) == 1 and isinstance(product[0].op, Mul) and up.output in product[0].arguments:
                return users
    return None
