"""Where the values of a graph lie in memory: views and strides, and what is kept for the backward pass."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property

from .backward_reads import Saved, Strides, dense
from .cost import at
from .graph import Graph, Node, Value
from .types import DimLike, TensorType


class Layout:
    """Where the values of a graph lie in memory when its dimensions have the given sizes.

    A view (reshape, transpose, slice, expand) has no memory of its own: its `root` holds it. frozen: names of
    parameters that are not trained. Raises ValueError for a dimension without a size.
    """

    def __init__(self, graph: Graph, sizes: Mapping[str, int], frozen: Collection[str] = ()) -> None:
        self.graph, self.sizes, self.frozen = graph, dict(sizes), frozenset(frozen)
        self.root: dict[Value, Value] = {}
        self.strides: dict[Value, Strides] = {}
        self.learns: set[Value] = set()
        for name, v in graph.params.items():
            self._leaf(v, learns=v.dtype.is_float and v.type.encoding is None and name not in self.frozen)
        for v in graph.inputs.values():
            self._leaf(v, learns=False)
        for node in graph:
            self._place(node)

    @cached_property
    def outputs(self) -> set[Value]:
        """Roots of what the graph gives: the caller holds them."""
        return {self.root[v] for v in self.graph.outputs.values()}

    def size(self, d: DimLike) -> int:
        return at(d, self.sizes)

    def bytes(self, type: TensorType) -> int:
        return self.size(type.bytes)

    def shape(self, shape: tuple[DimLike, ...]) -> tuple[int, ...]:
        return tuple(self.size(d) for d in shape)

    def flops(self, node: Node) -> int:
        return self.size(node.op.flops(*node.operands, **node.attributes))

    def free(self, v: Value) -> bool:
        """Whether a value is in memory anyway: inputs, parameters and constants."""
        root = self.root[v]
        return root.producer is None or root.is_constant

    def saved(self, node: Node) -> Saved:
        """What a node keeps for its backward pass; nothing if no gradient flows through it."""
        if not any(v in self.learns for v in node.outputs) or is_view(self, node):
            return Saved()
        return node.op.backward_reads(node, self)

    def rows(self, x: Value) -> int:
        """How many times the last axis lies in x."""
        return self.size(x.type.elements) // self.size(x.shape[-1])

    def _leaf(self, v: Value, learns: bool) -> None:
        self.root[v], self.strides[v] = v, dense(self.shape(v.shape))
        if learns:
            self.learns.add(v)

    def _place(self, node: Node) -> None:
        learns = any(v in self.learns for v in node.arguments)
        for v in node.outputs:
            if learns and v.dtype.is_float:
                self.learns.add(v)
            strides = self._view(node, v)
            self.root[v] = v if strides is None else self.root[node.arguments[0]]
            self.strides[v] = self._fresh(node, v) if strides is None else strides

    def _view(self, node: Node, out: Value) -> Strides | None:
        """The strides of an output that is a view of the first operand, or None where it is a tensor of its own."""
        if not node.arguments:
            return None
        x = node.arguments[0]
        return node.op.view(node, self.strides[x], self.shape(x.shape), self.shape(out.shape))

    def _fresh(self, node: Node, out: Value) -> Strides:
        """Most ops write densely; an elementwise op lays out its output as the first operand of that shape is."""
        shape = self.shape(out.shape)
        own = node.op.strides(shape)
        if own is not None:
            return own
        like = next((v for v in node.arguments if v.shape == out.shape), None)
        if like is None or not (node.op.elementwise or node.op.keeps_layout):
            return dense(shape)
        order = sorted(range(len(shape)), key=lambda i: -self.strides[like][i])
        by_order = dense(tuple(shape[i] for i in order))
        return tuple(by_order[order.index(i)] for i in range(len(shape)))


def is_view(layout: Layout, node: Node) -> bool:
    return any(layout.root[v] is not v for v in node.outputs)
