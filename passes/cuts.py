"""Cutting tensors over ranks: what a cut is, and how one passes through an op."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..ir.graph import Node, Value
from ..ir.types import DimLike, Shape, TensorType, exact_div, product


class Stop(Exception):
    """Why a value cannot be cut."""


class Indivisible(Stop):
    """A layer that would be cut if it had more than one head."""


@dataclass(frozen=True)
class Cut:
    """A tensor cut along `axis` (negative); each of its `sections` is shared equally by the ranks.

    Several sections are what a packed projection has: every rank takes its part of the queries, of the keys and of
    the values.
    """

    axis: int
    sections: tuple[DimLike, ...]

    def local(self, type: TensorType, size: int) -> TensorType:
        """The type of one of `size` parts."""
        shape = list(type.shape)
        shape[self.axis] = sum((exact_div(s, size) for s in self.sections), start=0)
        return TensorType(type.dtype, tuple(shape), type.encoding)


Cuts = Mapping[Value, Cut]
Rule = Callable[[Node, Cuts], dict[Value, Cut]]
"""(node, cuts known so far) -> the cuts that its operands and outputs then have. Raises Stop."""


def whole(v: Value, axis: int) -> Cut:
    return Cut(axis, (v.shape[axis],))


def _first(node: Node, known: Cuts) -> tuple[Value, Cut]:
    return next((v, known[v]) for v in [*node.arguments, *node.outputs] if v in known)


def elementwise(node: Node, known: Cuts) -> dict[Value, Cut]:
    """Whoever has the cut axis in full is cut alike; who is broadcast along it stays whole."""
    v, cut = _first(node, known)
    if node.op.random and len(cut.sections) > 1:
        raise Stop(f"{node} draws numbers for sections that lie apart")
    size = v.shape[cut.axis]
    wide = [u for u in [*node.arguments, *node.outputs] if u.rank >= -cut.axis and u.shape[cut.axis] == size]
    return dict.fromkeys(wide, cut)


def along_axis(node: Node, known: Cuts) -> dict[Value, Cut]:
    """Softmax and reductions that keep the axis: along another axis than the cut."""
    _, cut = _first(node, known)
    if cut.axis == node.attributes["axis"]:
        raise Stop(f"{node} needs the whole axis")
    return elementwise(node, known)


def norm(node: Node, known: Cuts) -> dict[Value, Cut]:
    _, cut = _first(node, known)
    if cut.axis == -1:
        raise Stop(f"{node} needs all channels")
    return dict.fromkeys((node.arguments[0], node.output), cut)


def rope(node: Node, known: Cuts) -> dict[Value, Cut]:
    _, cut = _first(node, known)
    if cut.axis != -2:
        raise Stop(f"{node} turns whole heads")
    return dict.fromkeys((node.arguments[0], node.output), cut)


def attention(node: Node, known: Cuts) -> dict[Value, Cut]:
    """By heads: queries, keys, values and what is added or masked per head."""
    _, cut = _first(node, known)
    q, k, v, bias, mask, _, sinks = node.operands
    if cut.axis not in (-2, -3) or len(cut.sections) > 1 or q is None or k is None or v is None:
        raise Stop(f"{node} is cut by heads only")
    if 1 in (q.shape[-2], k.shape[-2]):
        raise Indivisible(f"{k.shape[-2]} key/value heads for {q.shape[-2]} query heads at {node}")
    found = {x: whole(x, -2) for x in (q, k, v, node.output)}
    for x in (bias, mask):
        if x is not None and x.rank >= 3 and x.shape[-3] != 1:
            found[x] = whole(x, -3)
    if sinks is not None:
        found[sinks] = whole(sinks, -1)
    return found


def reshape(node: Node, known: Cuts) -> dict[Value, Cut]:
    x, y = node.arguments[0], node.output
    if x in known:
        return {y: _moved(node, known[x], x.shape, y.shape)}
    return {x: _moved(node, known[y], y.shape, x.shape)}


def _moved(node: Node, cut: Cut, before: Shape, after: Shape) -> Cut:
    """Where the cut axis lies in another shape of the same elements: as it was, split, or merged with what follows."""
    at = cut.axis % len(before)
    ahead, size = product(before[:at]), before[at]
    for to, found in enumerate(after):
        if found == 1 or product(after[:to]) != ahead:
            continue
        if found == size:
            return replace(cut, axis=to - len(after))
        split = any(product(after[to:end]) == size for end in range(to + 2, len(after) + 1))
        merged = any(product(before[at:end]) == found for end in range(at + 2, len(before) + 1))
        if (split or merged) and len(cut.sections) == 1:
            return Cut(to - len(after), (found,))
    raise Stop(f"{node} mixes the cut axis with others")


def transpose(node: Node, known: Cuts) -> dict[Value, Cut]:
    x, y, order = node.arguments[0], node.output, node.attributes["permutation"]
    if x in known:
        return {y: replace(known[x], axis=order.index(known[x].axis % x.rank) - x.rank)}
    return {x: replace(known[y], axis=order[known[y].axis] - x.rank)}


def slice_(node: Node, known: Cuts) -> dict[Value, Cut]:
    x, y = node.arguments[0], node.output
    _, cut = _first(node, known)
    if cut.axis != node.attributes["axis"]:
        return {x: cut, y: cut}
    if x not in known:
        raise Stop(f"{node} takes a part of an axis that is not known to be cut in sections")
    first, count = sections_of_slice(node, known[x])
    return {y: replace(cut, sections=known[x].sections[first : first + count])}


def sections_of_slice(node: Node, cut: Cut) -> tuple[int, int]:
    """(first section, how many) that a slice along the cut axis takes. Raises Stop if it cuts one in two."""
    start, end = node.attributes["start"], node.attributes["start"] + node.attributes["length"]
    edges = [sum(cut.sections[:i], start=0) for i in range(len(cut.sections) + 1)]
    if start not in edges or end not in edges:
        raise Stop(f"{node} takes [{start}:{end}], which is not a section of {list(cut.sections)}")
    return edges.index(start), edges.index(end) - edges.index(start)


def concat(node: Node, known: Cuts) -> dict[Value, Cut]:
    _, cut = _first(node, known)
    if cut.axis == node.attributes["axis"]:
        raise Stop(f"{node} joins parts along the cut axis")
    return dict.fromkeys([*node.arguments, node.output], cut)


def linear(node: Node, known: Cuts) -> dict[Value, Cut]:
    """Column-parallel: output channels are cut, the input is whole. Row-parallel: the other way round."""
    x, w, b = node.operands
    assert x is not None
    assert w is not None
    rows, columns = (-2, -1) if node.attributes["transposed"] else (-1, -2)  # Axes of w: channels in, channels out.
    if is_row_parallel(node, known):
        if node.output in known:
            raise Stop(f"{node} cannot be cut at both ends")
        return {w: Cut(rows, known[x].sections)}
    cut = known[node.output] if node.output in known else Cut(-1, known[w].sections) if w in known else None
    if cut is None or cut.axis != -1 or x in known or (w in known and known[w].axis != columns):
        raise Stop(f"{node} has no cut channels")
    found = {w: Cut(columns, cut.sections), node.output: cut}
    return found if b is None else {**found, b: Cut(-1, cut.sections)}


def is_row_parallel(node: Node, known: Cuts) -> bool:
    """Whether a node is a linear layer whose input channels are cut."""
    return node.op.name == "linear" and any(v in known and known[v].axis == -1 for v in node.arguments[:1])


def embedding(node: Node, known: Cuts) -> dict[Value, Cut]:
    _, cut = _first(node, known)
    if cut.axis != -1:
        raise Stop(f"{node} reads whole rows of the vocabulary")
    return {node.arguments[1]: cut, node.output: cut}


ELEMENTWISE = (
    "add", "sub", "mul", "div", "pow", "neg", "exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid", "erf", "sin", "cos",
    "maximum", "where", "cast", "gelu", "silu", "relu", "dropout", "equal", "less", "less_equal", "logical_and",
    "logical_or", "logical_not",
)  # fmt: skip
RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    "softmax": along_axis,
    "rms_norm": norm,
    "layer_norm": norm,
    "rope": rope,
    "attention": attention,
    "reshape": reshape,
    "transpose": transpose,
    "slice": slice_,
    "concat": concat,
    "linear": linear,
    "embedding": embedding,
    "dequantize": elementwise,
}
