"""How tokens move through a graph: which axes run over them, what each column has read, what masks alone decide."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ir.errors import OpError, PassError
from ..ir.flow import Link, Links
from ..ir.graph import Graph, Node, Value
from ..ir.slots import TARGETS, TOKENS, Stream
from ..ir.types import Dim, DimLike
from .token_order import Orders

_NEVER = -(1 << 30)
"""Reach of what reads no token at all."""


def stream_of(graph: Graph) -> Stream | None:
    """The stream whose tokens the graph makes: what it says itself, else by the names of its inputs.

    A graph that says nothing has one if it gives logits and something in it goes from token to token.
    """
    if graph.stream is not None:
        return graph.stream
    stream = TARGETS if TARGETS.ids in graph.inputs else TOKENS
    if stream.ids not in graph.inputs or "logits" not in graph.outputs:
        return None
    return stream if any(_is_sequential(node) for node in graph) else None


def _is_sequential(node: Node) -> bool:
    """Whether a node goes from token to token: a layer with a state, or one that looks at what came before."""
    if node.op.states:
        return True
    return bool(node.op.keys) and any(k.upto for k in node.op.links(*node.operands, **node.attributes))


def is_over(d: DimLike, symbol: str) -> bool:
    return isinstance(d, Dim) and symbol in d.symbols


def extra(d: DimLike, symbol: str) -> int | None:
    """c where d is `symbol + c`, else None."""
    rest = d - Dim.symbol(symbol)
    return rest if isinstance(rest, int) else None


def _is_first_column(link: Link, v: Value) -> bool:
    """Whether the link reads the first token alone, which every other one comes after."""
    return link.to is not None and link.shift == 0 and v.shape[link.to] == 1


@dataclass
class Reach:
    """What one value has read of the tokens.

    axes: by axis that runs over tokens, how far ahead of its own token column j has read (0: up to token j). late: a
    node that reads all tokens, so that the value changes when more come. ahead: the node that looked ahead first.
    """

    axes: dict[int, int] = field(default_factory=dict[int, int])
    late: Node | None = None
    ahead: Node | None = None


class TokenFlow:
    """Reach of every value of a graph, for the tokens of one stream."""

    def __init__(self, graph: Graph, stream: Stream) -> None:
        self.graph, self.stream, self.symbol = graph, stream, stream.length
        self.reach: dict[Value, Reach] = {}
        self.links: dict[Node, Links] = {}
        self.orders = Orders(graph.inputs.get(stream.mask))
        self.structural: set[Value] = set()
        """Values that follow from parameters, the mask, the positions and the number of tokens alone."""
        for v in graph.inputs.values():
            self.reach[v] = Reach(dict.fromkeys(self.axes(v), 0))
            if v.name in (stream.mask, stream.positions):
                self.structural.add(v)
        for v in graph.params.values():
            self.reach[v] = Reach()
            self.structural.add(v)
        for node in graph:
            self.node(node)

    def axes(self, v: Value) -> list[int]:
        """Axes of a value that run over tokens."""
        return [i for i, d in enumerate(v.shape) if is_over(d, self.symbol)]

    def moves(self, node: Node) -> Links:
        """The links of the axes of a node's operands that run over tokens."""
        return self.links[node]

    def node(self, node: Node) -> None:
        over = [[] if v is None else self.axes(v) for v in node.operands]
        links = self.links_of(node) if any(over) else ()
        self.links[node] = tuple(link for link in links if link.axis in over[link.operand])
        lost = [a for i, axes in enumerate(over) for a in axes if not any((k.operand, k.axis) == (i, a) for k in links)]
        if lost:
            raise PassError(f"{node.op.name} does not say what becomes of its tokens", place=str(node.location))
        names = node.op.signature.operand_names(len(node.operands))
        moving = [v for v, axes in zip(node.operands, over, strict=True) if v is not None and axes]
        ordered = not moving or self.orders.node(node, moving, self.links[node])
        for output, v in enumerate(node.outputs):
            self.reach[v] = self.output(node, output, v, names)
            if not ordered and self.reach[v].late is None:
                self.reach[v].late = node
        if all(v in self.structural for v in node.arguments):
            self.structural.update(node.outputs)

    def links_of(self, node: Node) -> Links:
        try:
            return node.op.links(*node.operands, **node.attributes)
        except OpError as e:
            raise PassError(e.what, place=str(node.location), hint=e.hint) from None

    def output(self, node: Node, output: int, v: Value, names: list[str]) -> Reach:
        found = Reach(dict.fromkeys(self.axes(v), _NEVER))
        for name, given in zip(names, node.operands, strict=True):
            if given is not None and name not in node.op.counts:
                before = self.reach[given]
                found.late, found.ahead = found.late or before.late, found.ahead or before.ahead
        for link in self.links[node]:
            given = node.operands[link.operand]
            if link.output != output or given is None or names[link.operand] in node.op.counts:
                continue
            step = self.step(link, given, v)
            read = self.reach[given].axes[link.axis]
            if _is_first_column(link, v) and read <= 0:
                continue
            if step is None:
                found.late = found.late or node
            else:
                assert link.to is not None
                reach = read + step
                found.axes[link.to] = max(found.axes[link.to], reach)
                if reach > 0 and found.ahead is None:
                    found.ahead = node
        return found

    def step(self, link: Link, given: Value, v: Value) -> int | None:
        """How much further ahead a link reads, or None if it reads tokens wherever they are."""
        if link.to is None or not is_over(v.shape[link.to], self.symbol):
            return None
        if link.upto:
            more = given.shape[link.axis] - v.shape[link.to]
            return more if isinstance(more, int) else None
        return -link.shift if isinstance(link.shift, int) else None

    def check(self, v: Value, what: str) -> None:
        """Raise PassError if a value that is remembered or given out would change when more tokens come."""
        reach = self.reach[v]
        guilty = reach.late or self.orders.moved.get(v)
        if guilty is not None:
            words = "reads all tokens, also those that come later, so it cannot go on from what was read before"
            raise PassError(f"{guilty.op.name} {words}", place=str(guilty.location), details=[f"{what} depends on it"])
        if any(n > 0 for n in reach.axes.values()):
            guilty = reach.ahead
            name, place = (guilty.op.name, str(guilty.location)) if guilty is not None else (v.name, "")
            n = max(reach.axes.values())
            raise PassError(f"{name} looks {n} tokens ahead, where none is known yet", place=place, details=[what])
