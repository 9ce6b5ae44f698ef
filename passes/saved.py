"""What the backward pass of each op reads again, by the derivatives PyTorch keeps, and which values share memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from ..ir.cost import at
from ..ir.graph import Graph, Node, Value
from ..ir.types import DimLike, TensorType, bool_

Strides = tuple[int, ...]
Rule = Callable[["Layout", Node], "Saved"]


@dataclass(frozen=True)
class Saved:
    """values: operands and outputs that the backward pass of a node reads. internal: bytes that its kernels keep
    beside them, such as row statistics and random masks.
    """

    values: tuple[Value, ...] = ()
    internal: int = 0


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
        node = self.root[v].producer
        return node is None or node.op.name == "constant"

    def saved(self, node: Node) -> Saved:
        """What a node keeps for its backward pass; nothing if no gradient flows through it."""
        if not any(v in self.learns for v in node.outputs) or is_view(self, node):
            return Saved()
        return RULES.get(node.op.name, _everything)(self, node)

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
        strides, old, new = self.strides[x], self.shape(x.shape), self.shape(out.shape)
        match node.op.name:
            case "reshape":
                return viewed(old, strides, new)
            case "transpose":
                permutation: tuple[int, ...] = node.attributes["permutation"]
                return tuple(strides[i] for i in permutation)
            case "slice":
                return strides
            case "expand":
                added = len(new) - len(old)
                kept = [s if a == b else 0 for s, a, b in zip(strides, old, new[added:], strict=True)]
                return (*(0,) * added, *kept)
            case "cast":
                return strides if x.dtype == out.dtype else None
            case "dropout":
                return strides if node.attributes["p"] == 0 else None
            case _:
                return None

    def _fresh(self, node: Node, out: Value) -> Strides:
        """Element by element, memory is laid out like the first operand of that shape; attention lays out by length."""
        shape = self.shape(out.shape)
        if node.op.name == "scaled_dot_product_attention":
            b, h, s, d = shape
            return dense((b, s, h, d))[0], d, h * d, 1
        like = next((v for v in node.arguments if v.shape == out.shape), None)
        if like is None or node.op.name not in ELEMENTWISE:
            return dense(shape)
        order = sorted(range(len(shape)), key=lambda i: -self.strides[like][i])
        by_order = dense(tuple(shape[i] for i in order))
        return tuple(by_order[order.index(i)] for i in range(len(shape)))


def is_view(layout: Layout, node: Node) -> bool:
    return any(layout.root[v] is not v for v in node.outputs)


def dense(shape: tuple[int, ...]) -> Strides:
    """Strides, in elements, of a tensor whose last axis lies together."""
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def viewed(shape: tuple[int, ...], strides: Strides, new: tuple[int, ...]) -> Strides | None:
    """Strides under which the same memory has another shape; None if the elements must move."""
    runs: list[tuple[int, int]] = []
    for n, stride in zip(shape, strides, strict=True):
        if n == 1:
            continue
        if runs and runs[-1][1] == n * stride:
            runs[-1] = (runs[-1][0] * n, stride)
        else:
            runs.append((n, stride))
    result: list[int] = []
    left, step = 1, 1
    for n in reversed(new):
        if n != 1 and left == 1 and runs:
            left, step = runs.pop()
        if n == 0 or left % n:
            return None
        result.append(step)
        left, step = left // n, step * n
    return tuple(reversed(result))


# -- rules ---------------------------------------------------------------------------------------------------------


def _everything(layout: Layout, node: Node) -> Saved:
    """For an op without a rule: the most that it could read, and once more its outputs."""
    return Saved((*node.arguments, *node.outputs), sum(layout.bytes(v.type) for v in node.outputs))


def _nothing(layout: Layout, node: Node) -> Saved:
    return Saved()


def _input(layout: Layout, node: Node) -> Saved:
    return Saved((node.arguments[0],))


def _output(layout: Layout, node: Node) -> Saved:
    return Saved((node.outputs[0],))


def _both(layout: Layout, node: Node) -> Saved:
    return Saved((node.arguments[0], node.outputs[0]))


def _each_other(layout: Layout, node: Node) -> Saved:
    """A product: the gradient of one operand is made with the other."""
    x, y = node.arguments
    return Saved(tuple(v for v, other in ((x, y), (y, x)) if other in layout.learns and not _number(v)))


def _quotient(layout: Layout, node: Node) -> Saved:
    x, y = node.arguments
    return Saved(tuple(v for v in ((x, y) if y in layout.learns else (y,)) if not _number(v)))


def _pair(layout: Layout, node: Node) -> Saved:
    return Saved(tuple(v for v in node.arguments if not _number(v)))


def _number(v: Value) -> bool:
    return v.producer is not None and v.producer.op.name == "constant" and v.rank == 0


def _linear(layout: Layout, node: Node) -> Saved:
    x, w = node.arguments[:2]
    wanted = (w,) if x in layout.learns else ()
    if w not in layout.learns:
        return Saved(wanted)
    # Rows that do not lie together are copied first, and the copy is what is kept.
    rows = viewed(layout.shape(x.shape), layout.strides[x], (_rows(layout, x), layout.size(x.shape[-1])))
    return Saved((x, *wanted)) if rows is not None else Saved(wanted, layout.bytes(x.type))


def _activated_linear(layout: Layout, node: Node) -> Saved:
    """What goes in: the activation is made again."""
    x, w, up, _b = node.operands
    return Saved(tuple(v for v in (x, w, up) if v is not None))


def _rows(layout: Layout, x: Value) -> int:
    return layout.size(x.type.elements) // layout.size(x.shape[-1])


def _rms_norm(layout: Layout, node: Node) -> Saved:
    """x and a number for each row. In narrow types, without a kernel, x and its square in float32 and two of the
    numbers; for the gradient of w also x scaled, in both widths.
    """
    x, w = node.arguments[:2]
    rows = _rows(layout, x) * _width(x)
    if x.dtype.bits >= 32:
        return Saved((x,), rows)
    wide = layout.size(x.type.elements) * _width(x)
    return Saved((), 2 * rows + wide + (wide if w in layout.learns else 0))


def _layer_norm(layout: Layout, node: Node) -> Saved:
    x = node.arguments[0]
    return Saved((x,), 2 * _rows(layout, x) * _width(x))


def _width(x: Value) -> int:
    return max(x.dtype.bits // 8, 4)


def _dropout(layout: Layout, node: Node) -> Saved:
    """The mask, scaled, in the width of x."""
    return Saved((), layout.bytes(node.arguments[0].type))


def _attention(layout: Layout, node: Node) -> Saved:
    """q, k, v, the result and a sum for each row; a bool mask is first made additive. (Dao et al. 2022)"""
    q, k, v = node.arguments[:3]
    internal = _rows(layout, q) * _width(q)
    mask = node.operands[3]
    if mask is not None and mask.dtype == bool_:
        return Saved((q, k, v, node.output), internal + layout.bytes(mask.type.with_dtype(q.dtype)))
    if mask is not None and mask in layout.learns:
        # The kernels give no gradient of the mask: scores and weights are then made one by one.
        scores = layout.size(q.type.elements * k.shape[2]) // layout.size(q.shape[3])
        return Saved((q, k, v, mask), 2 * scores * _width(q))
    return Saved((*node.arguments, node.output), internal)


def _cross_entropy(layout: Layout, node: Node) -> Saved:
    """Log-probabilities of all classes."""
    return Saved((node.arguments[1],), layout.bytes(node.arguments[0].type))


def _linear_cross_entropy(layout: Layout, node: Node) -> Saved:
    """The gradients themselves, made with the loss."""
    x, w, _labels, b = node.operands
    gradients = [x, *(v for v in (w, b) if w in layout.learns)]
    return Saved((), sum(layout.bytes(v.type) for v in gradients if v is not None))


def _index(layout: Layout, node: Node) -> Saved:
    return Saved((node.arguments[1],))


def _condition(layout: Layout, node: Node) -> Saved:
    return Saved((node.arguments[0],))


def _embedding(layout: Layout, node: Node) -> Saved:
    return Saved((node.arguments[0],))


ELEMENTWISE = frozenset(
    "add sub mul div maximum pow neg abs exp log sqrt rsqrt tanh sin cos erf sigmoid cast gelu silu relu dropout "
    "where logical_and logical_or logical_not equal less less_equal softmax".split()
)

RULES: dict[str, Rule] = {
    **dict.fromkeys("add sub neg cast sum mean concat reshape transpose expand slice".split(), _nothing),
    **dict.fromkeys("log sin cos erf abs gelu silu".split(), _input),
    **dict.fromkeys("exp sqrt rsqrt tanh sigmoid relu softmax".split(), _output),
    **dict.fromkeys("mul matmul".split(), _each_other),
    **dict.fromkeys("maximum pow".split(), _pair),
    "div": _quotient,
    "max": _both,
    "where": _condition,
    "gather": _index,
    "take_along_axis": _index,
    "embedding": _embedding,
    "linear": _linear,
    "activated_linear": _activated_linear,
    "frozen_linear": _nothing,
    "frozen_embedding": _nothing,
    "encoded_part": _nothing,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "dropout": _dropout,
    "scaled_dot_product_attention": _attention,
    "cross_entropy": _cross_entropy,
    "linear_cross_entropy": _linear_cross_entropy,
}
