"""The way of attention scores: from the product of queries and keys to softmax, and from there to the values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...ir.graph import Graph, Node, Value
from ...ir.ops.elementwise import Add, Cast, Div, Mul, Neg, Sub, Tanh
from ...ir.ops.linear import Matmul
from ...ir.ops.logic import Where
from ...ir.ops.reduce import Softmax
from ...ir.ops.scatter import Pad
from ...ir.ops.shape import Concat, Reshape, Slice, Transpose
from ...ir.value import ancestors
from .constants import scalar_of
from .views import factor

LONGEST = 40
"""Steps of a way beyond which the search ends."""


class Obstacle(Exception):
    """Why a softmax is not part of attention, and the node at which that was seen; an outcome of matching."""

    def __init__(self, reason: str, node: Node | None = None) -> None:
        super().__init__(reason)
        self.reason, self.node = reason, node


@dataclass(frozen=True)
class Step:
    """One node on the way and the place of the operand that carries the scores."""

    node: Node
    carrier: int

    @property
    def sides(self) -> list[Value]:
        """The other operands."""
        return [v for i, v in enumerate(self.node.operands) if v is not None and i != self.carrier]


@dataclass(frozen=True)
class Way:
    """product: the matmul of queries and keys. before: steps to softmax. after: steps from it. values: last matmul."""

    product: Node
    before: tuple[Step, ...]
    softmax: Node
    after: tuple[Step, ...]
    values: Node
    carrier: int
    """Which operand of `values` holds the weights."""


def ways(graph: Graph, softmax: Node) -> Iterator[Way]:
    """Every way through a softmax, most likely first. Raises Obstacle where there is none."""
    after, values, carrier = _forward(graph, softmax)
    found = False
    blocked: list[Obstacle] = []
    for product, before in _backward(softmax.value("x"), blocked, LONGEST):
        found = True
        yield Way(product, tuple(reversed(before)), softmax, after, values, carrier)
    if not found:
        raise blocked[0] if blocked else Obstacle("no product of queries and keys is found above it", softmax)


def _backward(v: Value, blocked: list[Obstacle], left: int) -> Iterator[tuple[Node, list[Step]]]:
    node = v.producer
    if node is None:
        blocked.append(Obstacle(f"scores are {v!r}, no product of queries and keys"))
        return
    if isinstance(node.op, Matmul):
        if any(_is_weight(x) for x in node.arguments):
            blocked.append(Obstacle("scores are a product with a weight, not of queries and keys", node))
            return
        yield node, []
        return
    places = _carriers(node) if left else []
    if not places:
        blocked.append(Obstacle(f"scores come from {node.op.name}, no product of queries and keys", node))
    for i in places:
        carried = node.operands[i]
        assert carried is not None
        for product, steps in _backward(carried, blocked, left - 1):
            yield product, [Step(node, i), *steps]


def _is_weight(v: Value) -> bool:
    """Whether a value is made of parameters and constants alone."""
    while v.producer is not None and isinstance(v.producer.op, (Reshape, Transpose, Cast, Slice)):
        v = v.producer.arguments[0]
    return v.is_param or v.is_constant


def _carriers(node: Node) -> list[int]:
    """Places of operands that may carry scores through a node, most likely first."""
    op = node.op
    if isinstance(op, (Reshape, Transpose, Tanh, Neg)):
        return [0]
    if isinstance(op, Cast):
        return [0] if node.value("x").dtype.is_float and node.output.dtype.is_float else []
    if isinstance(op, (Mul, Div)):
        found = factor(node)
        return _full(node) if found is None else [node.operands.index(found[0])]
    if isinstance(op, Where):
        return [i for i in (1, 2) if scalar_of(node.arguments[3 - i]) is not None]
    if isinstance(op, Concat):
        joins = len(node.arguments) == 2 and node.attributes["axis"] == -1
        return [i for i in (0, 1) if joins and node.arguments[1 - i].shape[-1] == 1]
    if isinstance(op, Pad):
        return [] if padded_column(node) is None else [0]
    return _full(node) if isinstance(op, (Add, Sub)) else []


def _full(node: Node) -> list[int]:
    """Places of operands that others are broadcast to, the nearest to a product first."""
    places = [0, 1] if isinstance(node.op, (Add, Mul)) else [0]
    full = [i for i in places if node.arguments[i].shape == node.output.shape]
    return sorted(full, key=lambda i: _distance(node.arguments[i]))


def padded_column(node: Node) -> tuple[bool, float] | None:
    """(whether it comes first, its number) of one column that is added along the last axis, and nothing else."""
    *others, last = node.attributes["widths"]
    if any(tuple(w) != (0, 0) for w in others) or tuple(last) not in ((1, 0), (0, 1)):
        return None
    return tuple(last) == (1, 0), float(node.attributes["value"])


def _distance(v: Value) -> int:
    """How far above a value the next matmul is, along first operands; LONGEST if there is none."""
    for i in range(LONGEST):
        node = v.producer
        if node is None or not node.arguments:
            return LONGEST
        if isinstance(node.op, Matmul):
            return i
        places = _carriers(node) if not isinstance(node.op, (Add, Sub, Mul, Div)) or factor(node) else [0]
        if not places:
            return LONGEST
        v = node.arguments[places[0]]
    return LONGEST


def _forward(graph: Graph, softmax: Node) -> tuple[tuple[Step, ...], Node, int]:
    steps: list[Step] = []
    v = softmax.output
    for _ in range(LONGEST):
        if graph.is_output(v):
            raise Obstacle("the weights are also an output of the graph", softmax)
        node = _next(v)
        if isinstance(node.op, Matmul):
            return tuple(steps), node, node.operands.index(v)
        place = node.operands.index(v) if not isinstance(node.op, Where) else _guarded(node, v)
        passes = isinstance(node.op, (Reshape, Transpose, Where, Slice))
        if isinstance(node.op, Cast):
            passes = node.output.dtype.is_float
        if isinstance(node.op, Slice):
            passes = node.attributes["axis"] == -1 and node.attributes["start"] in (0, 1)
        if isinstance(node.op, Mul):
            passes = True  # By what is 1 where a score counts; anything else shows when numbers are compared.
        if not passes or place is None:
            raise Obstacle(f"the weights go to {node.op.name}, not to a product with values", node)
        steps.append(Step(node, place))
        v = node.output
    raise Obstacle("no product with values is found below it", softmax)


def _next(v: Value) -> Node:
    """The one reader of weights, apart from guards, whose condition may read them, too."""
    users = v.users
    if not users:
        raise Obstacle("nothing reads the weights", v.producer)
    if len(users) == 1:
        return users[0]
    for guard in users:
        if not isinstance(guard.op, Where) or v not in guard.operands[1:]:
            continue
        inside = set(ancestors(guard.value("condition")))
        if all(user in inside or user is guard for user in users):
            return guard
    raise Obstacle(f"the weights are read by {len(users)} nodes, not by a product with values alone", users[-1])


def _guarded(node: Node, v: Value) -> int | None:
    """Which operand of a guard v is, if the other one is 0."""
    for i in (1, 2):
        if node.operands[i] is v and scalar_of(node.arguments[3 - i]) == 0:
            return i
    return None


def is_softmax(node: Node) -> bool:
    return isinstance(node.op, Softmax)
