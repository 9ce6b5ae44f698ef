"""Blocks of an architecture: the nodes of a graph gathered into what a paper draws as one box."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..ir import ops
from ..ir.graph import Graph
from ..ir.types import Shape
from ..ir.value import Node, Value
from .flow import Flow, Sum, flow_of, prepared, sums
from .vocabulary import Role, role_of


@dataclass(eq=False)
class Block:
    """One box of a picture.

    nodes: what it computes. params: parameters that it is the first to use. tied: those that an earlier block owns.
    details: lines under the title. beside: names of the inputs that come from one side. layer, inner: the scope of the
    layer that it belongs to, and of a layer inside of that. value: what an input or output block stands for.
    """

    role: Role
    title: str = ""
    nodes: list[Node] = field(default_factory=list[Node])
    params: list[Value] = field(default_factory=list[Value])
    tied: list[Value] = field(default_factory=list[Value])
    details: list[str] = field(default_factory=list[str])
    beside: list[str] = field(default_factory=list[str])
    layer: str = ""
    inner: str = ""
    value: Value | None = None
    fork: Value | None = None

    @property
    def count(self) -> int:
        """Numbers in its parameters."""
        return sum(math.prod(fixed(v.type.shape)) for v in self.params)


@dataclass(eq=False)
class Edge:
    """A value on its way from one block to another. around: the residual line of a sum. quiet: from one side."""

    source: Block
    target: Block
    value: Value
    around: bool = False
    quiet: bool = False


@dataclass
class Architecture:
    """The blocks of a graph in order, and what flows between them."""

    graph: Graph
    flow: Flow
    blocks: list[Block]
    edges: list[Edge]


def fixed(shape: Shape) -> tuple[int, ...]:
    """The dimensions of a parameter, all of which are integers."""
    return tuple(d for d in shape if isinstance(d, int))


def gathered(graph: Graph) -> tuple[Flow, list[Block]]:
    """The blocks of a graph in order, each with its nodes, and the main flow that they stand in."""
    flow = flow_of(prepared(graph))
    gathering = _Gathering(flow)
    gathering.run()
    return flow, gathering.blocks


class _Gathering:
    """Nodes of the main flow are given to blocks: first what stands in residual branches, then the trunk."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.blocks: list[Block] = []
        self.block_of: dict[Node, Block] = {}
        found = sums(flow)
        self.sums = found
        self.joins = {n for s in found if s.fork is not None for n in s.nodes}

    def run(self) -> None:
        for s in self.sums:
            if s.fork is not None:
                self.take(Block(Role.sum, "+", fork=s.fork), s.nodes)
        for s in self.sums:
            if s.fork is not None:
                self.branches(s, s.fork)
        for s in self.sums:
            if s.fork is None and not any(n in self.block_of for n in s.nodes):
                self.take(Block(Role.sum, "+"), s.nodes)
        self.trunk()
        self.blocks.sort(key=lambda b: max(n.order for n in b.nodes))

    def take(self, block: Block, nodes: Iterable[Node]) -> None:
        new = [n for n in nodes if n not in self.block_of]
        if not new:
            return
        if not block.nodes:
            self.blocks.append(block)
        block.nodes += new
        for n in new:
            self.block_of[n] = block

    def branches(self, found: Sum, fork: Value) -> None:
        """Blocks between a fork and its sum, unless other sums stand there."""
        around = [self.flow.between(fork, t) for t in found.terms]
        around = [inner for nodes in around if (inner := [n for n in nodes if n not in found.nodes])]
        if any(n in self.joins for nodes in around for n in nodes):
            return
        seen: dict[Node, int] = {}
        for nodes in around:
            for n in nodes:
                seen[n] = seen.get(n, 0) + 1
        shared = [n for n in self.flow.nodes if seen.get(n, 0) > 1] if len(around) > 1 else []
        for nodes in (shared, *([n for n in nodes if seen[n] == 1 or len(around) == 1] for nodes in around)):
            for segment in self.segments([n for n in nodes if n not in self.block_of], fork):
                self.take(Block(Role.other), [*segment, *self.appended(segment)])

    def segments(self, nodes: list[Node], fork: Value) -> list[list[Node]]:
        """A branch cut at the norms that everything runs through."""
        index = {n: i for i, n in enumerate(nodes)}
        reach, cuts = -1, set[Node]()
        for n in nodes:
            for v in self.flow.entering(n):
                p = v.producer
                inside = p in index
                if not inside and (
                    v is fork or (p is not None and fork.producer is not None and self.follows(p, fork))
                ):
                    reach = max(reach, self.first_reached(nodes, index, v))
            i = index[n]
            if reach <= i and self.is_norm(n):
                cuts.add(n)
            targets = [index.get(u, len(nodes)) for v in n.outputs for u in v.users if u in self.flow.place]
            reach = max([reach, *targets])
        result: list[list[Node]] = [[]]
        for n in nodes:
            if n in cuts:
                result += [[n], []]
            else:
                result[-1].append(n)
        return self.joined([s for s in result if s])

    def follows(self, node: Node, fork: Value) -> bool:
        assert fork.producer is not None
        place = self.flow.place.get(fork.producer)
        return place is not None and bool(self.flow.before[node] >> place & 1)

    def first_reached(self, nodes: list[Node], index: dict[Node, int], value: Value) -> int:
        """The last node of a branch that reads a value which comes in from before it."""
        return max((index[u] for u in value.users if u in index and u is not nodes[0]), default=-1)

    def joined(self, segments: list[list[Node]]) -> list[list[Node]]:
        """Segments without a layer of their own go to the one before, or at the start to the one behind."""
        result: list[list[Node]] = []
        waiting: list[Node] = []
        for segment in segments:
            if any(role_of(n, self.flow.weighted(n)) for n in segment):
                result.append([*waiting, *segment])
                waiting = []
            elif result:
                result[-1] += segment
            else:
                waiting += segment
        return result or ([waiting] if waiting else [])

    def is_norm(self, n: Node) -> bool:
        found = role_of(n, self.flow.weighted(n))
        return found is not None and found[0] is Role.norm

    def appended(self, nodes: Sequence[Node], only_one: bool = False) -> list[Node]:
        """Nodes outside that only these read, as keys and values over an encoder's output; not norms and sums.

        only_one: go no further than one layer up.
        """
        flow, inside, found = self.flow, set(nodes), list[Node]()
        waiting = list(nodes)
        stop = set[Node]()
        while waiting:
            node = waiting.pop()
            if node in stop:
                continue
            for v in self.flow.entering(node):
                p = v.producer
                if p is None or p in inside or p in self.block_of or p not in self.flow.place:
                    continue
                found_role = role_of(p, self.flow.weighted(p))
                if found_role is not None and found_role[0] in (Role.norm, Role.embedding):
                    continue
                if any(u not in inside for o in p.outputs for u in o.users) or any(
                    map(flow.graph.is_output, p.outputs)
                ):
                    continue
                if only_one and found_role is not None:
                    stop.add(p)
                inside.add(p)
                found.append(p)
                waiting.append(p)
        return found

    def trunk(self) -> None:
        """Each layer that is left is a block; what stands between layers goes to the one before it."""
        left = [n for n in self.flow.nodes if n not in self.block_of]
        for n in left:
            if n.op is ops.attention.op and n not in self.block_of:
                block = Block(Role.other)
                self.take(block, [*self.appended([n], only_one=True), n])
                self.take(block, self.projection(n))
        waiting: list[Node] = []
        for n in left:
            if n in self.block_of:
                continue
            if role_of(n, self.flow.weighted(n)) is not None:
                self.take(Block(Role.other), [n])
                continue
            sources = {self.block_of[v.producer] for v in self.flow.entering(n) if v.producer in self.block_of}
            loose = [v for v in self.flow.entering(n) if v.producer in waiting]
            inputs = [v for v in self.flow.entering(n) if v.producer is None]
            if len(sources) == 1 and not loose and not inputs and next(iter(sources)).role is not Role.sum:
                self.take(next(iter(sources)), [n])
            elif len(sources) >= 1:
                self.take(Block(Role.other), [n])
            else:
                waiting.append(n)
        for n in reversed(waiting):
            readers = [self.block_of[u] for v in n.outputs for u in v.users if u in self.block_of]
            self.take(readers[0] if readers else Block(Role.other), [n])

    def projection(self, n: Node) -> list[Node]:
        """What brings the output of attention back to the width of the model, if nothing else reads it."""
        found: list[Node] = []
        while len(n.output.users) == 1 and not self.flow.graph.is_output(n.output):
            n = n.output.users[0]
            found.append(n)
            if n in self.block_of or len(n.outputs) != 1:
                return []
            role = role_of(n, self.flow.weighted(n))
            if role is not None:
                return found if role[0] is Role.linear else []
        return []
