"""The main flow of a graph: what the tokens run through, apart from weights, masks and positions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..ir.graph import Graph
from ..ir.value import Node, Value
from ..passes import fuse
from ..passes.canonicalize import remove_dropout
from ..passes.manager import FunctionPass, Pipeline
from ..passes.pipelines import CLEAN
from .vocabulary import GATHERING, is_sum, quiet_by_op, role_of, scaled

_RAISE = Pipeline("picture", (FunctionPass("remove_dropout", remove_dropout), *CLEAN, fuse.LAYERS, CLEAN[-1]))


def prepared(graph: Graph) -> Graph:
    """A copy without dropout, in which layers that were written in primitives are raised to layers."""
    new = graph.copy()
    _RAISE.run(new, verify=False)
    return new


@dataclass(eq=False)
class Sum:
    """A sum that is drawn as a plus.

    nodes: the additions, the last of which gives the sum. terms: what is added. fork: the term that runs around the
    others, if they are made of it; None for a plain sum.
    """

    nodes: list[Node]
    terms: list[Value]
    fork: Value | None = None


@dataclass
class Flow:
    """The main flow of a graph.

    nodes: those on the main flow, in order. place: of a node in that list. before, after: sets of nodes as bits by
    place: those that a node is computed from, and those computed from it. still: values made of parameters and
    constants alone. rich: values that depend on a parameter or on a float input.
    """

    graph: Graph
    nodes: list[Node] = field(default_factory=list[Node])
    place: dict[Node, int] = field(default_factory=dict[Node, int])
    before: dict[Node, int] = field(default_factory=dict[Node, int])
    after: dict[Node, int] = field(default_factory=dict[Node, int])
    still: set[Value] = field(default_factory=set[Value])
    rich: set[Value] = field(default_factory=set[Value])

    def entering(self, node: Node) -> list[Value]:
        """Operands that come along the main flow."""
        return [v for i, v in enumerate(node.operands) if v is not None and not self.quiet(node, i)]

    def weighted(self, node: Node) -> bool:
        """Whether an operand is a parameter, or made of parameters."""
        return any(v in self.still and not v.is_constant for v in node.arguments)

    def quiet(self, node: Node, place: int) -> bool:
        """Whether an operand comes from one side: weights, masks, positions."""
        v = node.operands[place]
        if v is None or v in self.still or quiet_by_op(node, place):
            return True
        if node.op in GATHERING and place > 0 and node.operands[0] not in self.still:
            return True
        others = [o for i, o in enumerate(node.arguments) if i != place and o not in self.still]
        if not others or v in self.rich:
            return False
        same = v.type == node.outputs[0].type and v.dtype.is_float
        return any(o in self.rich for o in others) and not same

    def members(self, bits: int) -> list[Node]:
        found: list[Node] = []
        while bits:
            low = bits & -bits
            found.append(self.nodes[low.bit_length() - 1])
            bits ^= low
        return found

    def between(self, fork: Value, term: Value) -> list[Node]:
        """Nodes that are computed from `fork` and that `term` is computed from, with the one that makes `term`."""
        if term.producer is None or term.producer not in self.place:
            return []
        ends = self.before[term.producer] | 1 << self.place[term.producer]
        if fork.producer is not None and fork.producer in self.place:
            return self.members(ends & self.after[fork.producer])
        starts = [n for n in fork.users if n in self.place and any(v is fork for v in self.entering(n))]
        reached = 0
        for n in starts:
            reached |= self.after[n] | 1 << self.place[n]
        return self.members(ends & reached)


def flow_of(graph: Graph) -> Flow:
    """The main flow of a prepared graph."""
    flow = Flow(graph)
    flow.still = set(graph.params.values())
    flow.rich = {v for v in graph.inputs.values() if v.dtype.is_float}
    for node in graph:
        if all(v in flow.still for v in node.arguments):
            flow.still.update(node.outputs)
        elif flow.weighted(node) or any(v in flow.rich for v in node.arguments):
            flow.rich.update(node.outputs)
    found: set[Node] = set()
    waiting = list(graph.outputs.values())
    while waiting:
        node = waiting.pop().producer
        if node is not None and node not in found:
            found.add(node)
            waiting += flow.entering(node)
    flow.nodes = sorted(found, key=lambda n: n.order)
    flow.place = {n: i for i, n in enumerate(flow.nodes)}
    for node in flow.nodes:
        flow.before[node] = 0
        for v in flow.entering(node):
            if v.producer is not None:
                flow.before[node] |= flow.before[v.producer] | 1 << flow.place[v.producer]
    flow.after = dict.fromkeys(flow.nodes, 0)
    for node in reversed(flow.nodes):
        for v in flow.entering(node):
            if v.producer is not None:
                flow.after[v.producer] |= flow.after[node] | 1 << flow.place[node]
    return flow


def sums(flow: Flow) -> list[Sum]:
    """Sums of the main flow that are drawn as a plus, in order: residual sums, and sums of parts with weights."""
    found: dict[Value, Sum] = {}
    for node in flow.nodes:
        if not is_sum(node) or len(flow.entering(node)) < 2:
            continue
        made = Sum([node], flow.entering(node))
        for v in list(made.terms):
            inner = found.get(v)
            others = [t for t in made.terms if t is not v]
            if inner is None or len(v.uses) > 1:
                continue
            if inner.fork is None or all(flow.between(inner.fork, t) and not flow.between(v, t) for t in others):
                at = made.terms.index(v)
                made.terms[at : at + 1] = inner.terms
                made.nodes = [*inner.nodes, *made.nodes]
                del found[v]
        made.fork = _fork(flow, made.terms)
        made.nodes = [*_scales(made.terms, made.fork), *made.nodes]
        found[node.output] = made
    for s in found.values():
        if s.fork is not None and not _nested(flow, s, s.fork, list(found.values())):
            s.fork = None
    return [s for s in found.values() if s.fork is not None or _of_parts(flow, s)]


def _nested(flow: Flow, found: Sum, fork: Value, others: list[Sum]) -> bool:
    """Whether the residual lines in a branch begin in it: else it is a sum of what layers give, not a residual sum."""
    inside = {n for t in found.terms for n in flow.between(fork, t)}
    for other in others:
        if other is not found and other.fork is not None and other.nodes[-1] in inside:
            start = other.fork.producer
            if other.fork is not fork and start not in inside and (start is None or start is not fork.producer):
                return False
    return True


def _fork(flow: Flow, terms: Iterable[Value]) -> Value | None:
    terms = list(terms)
    for term in terms:
        start: Value | None = term
        while start is not None and start in flow.rich:
            around = [flow.between(start, t) for t in terms if t is not term]
            if all(any(role_of(n, flow.weighted(n)) for n in nodes) for nodes in around):
                return start
            start = scaled(start.producer) if start.producer is not None else None
    return None


def _scales(terms: Iterable[Value], fork: Value | None) -> list[Node]:
    """Multiplications by a number on the way around."""
    for term in terms:
        nodes: list[Node] = []
        value: Value | None = term
        while value is not None and value is not fork and value.producer is not None and len(value.uses) == 1:
            nodes.insert(0, value.producer)
            value = scaled(value.producer)
        if value is fork and fork is not None:
            return nodes
    return []


def _of_parts(flow: Flow, found: Sum) -> bool:
    """Whether each term is made by a layer directly, as a sum of embeddings is."""

    def layer(v: Value) -> bool:
        node = v.producer
        while node is not None and node in flow.place and role_of(node, flow.weighted(node)) is None:
            entering = flow.entering(node)
            node = entering[0].producer if len(entering) == 1 else None
        return node is not None

    return all(layer(v) for v in found.terms)
