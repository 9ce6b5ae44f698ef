"""Activation checkpointing from the graph: which values to keep for the backward pass, by min-cut under a budget.

A value that the backward pass reads is either kept or computed again from values that are. In the flow network every
value is an edge as wide as its bytes; what may not be computed again hangs on the source, what the backward pass reads
on the sink. The smallest cut is then the smallest set of values from which all the others follow. (Chen et al. 2016;
Jain et al. 2020; the cut as in the partitioner of functorch, He & Yu 2023)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx

from ..ir.backward_reads import Saved
from ..ir.errors import ConfigError
from ..ir.graph import Graph, Node, Value
from ..ir.layout import Layout, is_view
from ..ir.op import body_of
from ..ir.ops.elementwise import Add

_networkx: Any = nx  # Its types are not known.


class MemoryBudgetError(ConfigError):
    """What must be kept for the backward pass, `needed` bytes, is more than was allowed."""

    needed: int = 0


@dataclass(frozen=True)
class Row:
    """Nodes of one op that run again: how many, the bytes they make again, their floating-point operations."""

    op: str
    count: int
    bytes: int
    flops: int


@dataclass(frozen=True)
class Plan:
    """What is kept and what is computed again. A value is (position of its node in the graph, index of the output).

    kept: values that are read again or from which others are computed again. recomputed: positions of the nodes that
    run once more; readers: of those whose backward pass reads what was made again. bytes_before: held for the
    backward pass if all is kept; bytes_after: with this plan; bytes_again: most that one block computes again, which
    comes on top while its backward pass runs. flops: of the nodes that run again; flops_forward: of the whole graph.
    """

    kept: frozenset[tuple[int, int]]
    recomputed: frozenset[int]
    readers: frozenset[int]
    bytes_before: int
    bytes_after: int
    bytes_again: int
    flops: int
    flops_forward: int
    rows: tuple[Row, ...]

    @property
    def share(self) -> float:
        """Extra floating-point operations, as a share of the forward pass."""
        return self.flops / max(self.flops_forward, 1)

    def __str__(self) -> str:
        before, after, again = (n / 1e6 for n in (self.bytes_before, self.bytes_after, self.bytes_again))
        if not self.recomputed:
            return f"keeps {after:.1f} MB for the backward pass; nothing is computed again"
        head = f"keeps {after:.1f} of {before:.1f} MB for the backward pass; {again:.1f} MB more within a block;"
        lines = [f"{head} {100 * self.share:.1f} % more of the forward pass"]
        lines += [f"{'op':<30}{'nodes':>6}{'MB not kept':>13}{'Mflop':>10}"]
        lines += [f"{r.op:<30}{r.count:>6}{r.bytes / 1e6:>13.1f}{r.flops / 1e6:>10.1f}" for r in self.rows]
        return "\n".join(lines)


def recompute(graph: Graph, sizes: Mapping[str, int], memory: int, frozen: Collection[str] = ()) -> Plan:
    """The cheapest plan that keeps at most `memory` bytes for the backward pass.

    graph: as the backend runs it. sizes: of its symbolic dimensions. frozen: parameters that are not trained. First
    norms, activations and other cheap ops may be computed again, block by block from the first one on; then
    attention and matrix products, those first that cost the fewest operations for each byte. What one block of layers
    hands to the next is always kept. Raises MemoryBudgetError, with the least number of bytes, if nothing fits, and
    ValueError for a dimension without a size.
    """
    network = Network(graph, sizes, frozen)
    plan = network.plan(())
    if plan.bytes_after <= memory:
        return plan
    groups = network.candidates()
    low, high = 0, len(groups)
    best = network.plan(node for group in groups for node in group)
    if best.bytes_after > memory:
        raise _too_little(graph, sizes, memory, best)
    while high - low > 1:
        middle = (low + high) // 2
        found = network.plan(node for group in groups[:middle] for node in group)
        low, high, best = (low, middle, found) if found.bytes_after <= memory else (middle, high, best)
    return best


def _too_little(graph: Graph, sizes: Mapping[str, int], memory: int, best: Plan) -> MemoryBudgetError:
    least, full = best.bytes_after / 1e6, best.bytes_before / 1e6
    what = f"{memory / 1e6:.1f} MB are too few for the backward pass: at least {least:.1f} MB must be kept"
    given = ", ".join(f"{k} = {v}" for k, v in sizes.items())
    details = [f"with {given}; without computing anything again it would be {full:.1f} MB"]
    error = MemoryBudgetError(what, place=graph.name, details=details, hint="fewer rows at a time, or shorter ones")
    error.needed = best.bytes_after
    return error


class Network:
    """The values of a graph and what the backward pass reads of them, ready to be cut."""

    def __init__(self, graph: Graph, sizes: Mapping[str, int], frozen: Collection[str]) -> None:
        self.layout = Layout(graph, sizes, frozen)
        self.nodes = [n for n in graph if not n.op.constant and not is_view(self.layout, n)]
        self.place = {n: i for i, n in enumerate(graph)}
        self.saved: dict[Node, Saved] = {n: self.layout.saved(n) for n in self.nodes}
        self.heavy = {n for n in self.nodes if _heavy(n)}
        self.block = blocks(graph)
        self.needed = {r for s in self.saved.values() for r in self.roots(s.values)}
        self.fixed = self._fixed()
        self.flops = {n: self.layout.flops(n) for n in self.nodes}

    def roots(self, values: Iterable[Value]) -> list[Value]:
        """What holds the memory of values, without what is there anyway."""
        layout = self.layout
        return list(dict.fromkeys(layout.root[v] for v in values if not layout.free(v)))

    def _fixed(self) -> set[Node]:
        """Nodes that never run again: outputs of the graph, and what one block hands to another if it is not cheap
        all the way from the inputs.
        """
        layout, fixed = self.layout, set[Node]()
        costly: set[Value] = set()
        readers: dict[Value, set[int]] = {}
        for node in self.nodes:
            if node in self.heavy or any(r in costly for r in self.roots(node.arguments)):
                costly.update(node.outputs)
            for r in self.roots(node.arguments):
                readers.setdefault(r, set()).add(self.block[node])
        for node in self.nodes:
            for v in node.outputs:
                crosses = v in costly and readers.get(v, set()) - {self.block[node]}
                if v in layout.outputs or crosses:
                    fixed.add(node)
        return fixed

    def candidates(self) -> list[list[Node]]:
        """What may run again, in the order in which it is allowed to."""
        cheap: dict[int, list[Node]] = {}
        heavy: list[Node] = []
        for node in self.nodes:
            if node in self.heavy and node not in self.fixed:
                heavy.append(node)
            elif node not in self.fixed:
                cheap.setdefault(self.block[node], []).append(node)
        heavy.sort(key=lambda n: (self._price(n), self.block[n], self.place[n]))
        return [*(cheap[b] for b in sorted(cheap)), *([n] for n in heavy)]

    def _price(self, node: Node) -> float:
        freed = sum(self.layout.bytes(v.type) for v in node.outputs) + self.saved[node].internal
        return self.flops[node] / max(freed, 1)

    def plan(self, allowed: Iterable[Node]) -> Plan:
        """The smallest cut when only some nodes may run again."""
        allowed = set(allowed)
        kept, internal = self._cut(allowed)
        again, dropped = self._again(kept, internal)
        for node in again - allowed:
            raise AssertionError(f"{node!r} was not to run again")
        bytes_of, layout = self.layout.bytes, self.layout
        outputs = {v for v in layout.outputs if not layout.free(v)}
        always = sum(s.internal for s in self.saved.values())
        before = sum(bytes_of(v.type) for v in self.needed | outputs) + always
        after = sum(bytes_of(v.type) for v in kept | outputs) + sum(self.saved[n].internal for n in internal)
        readers = [n for n, s in self.saved.items() if any(r not in kept for r in self.roots(s.values))]
        per_block: dict[int, int] = {}
        for node in again:
            per_block[self.block[node]] = per_block.get(self.block[node], 0) + dropped[node]
        return Plan(
            frozenset((self.place[v.producer], v.index) for v in kept if v.producer is not None),
            frozenset(self.place[n] for n in again),
            frozenset(self.place[n] for n in readers),
            before,
            after,
            max(per_block.values(), default=0),
            sum(self.flops[n] for n in again),
            sum(self.flops.values()),
            _rows(again, dropped, self.flops),
        )

    def _cut(self, allowed: Collection[Node]) -> tuple[set[Value], set[Node]]:
        """(values kept, nodes whose internal bytes are kept)."""
        flow = _networkx.DiGraph()
        # Bytes come first: all penalties for running again together weigh less than one byte.
        byte = 1 + sum(2 * self._penalty(n) for n in self.nodes)
        for node in self.nodes:
            things: list[tuple[Any, int]] = [(v, self._width(v)) for v in node.outputs]
            if self.saved[node].internal:
                things.append((node, self.saved[node].internal))
                flow.add_edge((node, "out"), "sink")
            for thing, size in things:
                flow.add_edge((thing, "in"), (thing, "out"), capacity=size * byte)
                for r in self.roots(node.arguments):
                    flow.add_edge((r, "out"), (thing, "in"))
                if node in allowed:
                    flow.add_edge("source", (thing, "in"), capacity=self._penalty(node))
                else:
                    flow.add_edge("source", (thing, "in"))
        for v in self.needed:
            flow.add_edge((v, "out"), "sink")
        if "sink" not in flow:
            return set(), set()
        sides: tuple[set[Any], set[Any]] = _networkx.minimum_cut(flow, "source", "sink")[1]
        near, far = sides[0] - {"source"}, sides[1]
        cut = {thing for thing, side in near if side == "in" and (thing, "out") in far}
        return {x for x in cut if isinstance(x, Value)}, {x for x in cut if isinstance(x, Node)}

    def _width(self, v: Value) -> int:
        """What it costs to keep a value; an output of the graph is kept anyway."""
        return 0 if v in self.layout.outputs else self.layout.bytes(v.type)

    def _penalty(self, node: Node) -> int:
        return 1 + self.flops[node] + sum(self.layout.bytes(v.type) for v in node.outputs)

    def _again(self, kept: set[Value], internal: set[Node]) -> tuple[set[Node], dict[Node, int]]:
        """(nodes that must run again, bytes that each of them makes again)."""
        dropped: dict[Node, int] = {n: s.internal for n, s in self.saved.items() if s.internal and n not in internal}
        waiting = [v for v in self.needed if v not in kept]
        for node in dropped:
            waiting += [r for r in self.roots(node.arguments) if r not in kept]
        seen: set[Value] = set()
        while waiting:
            v = waiting.pop()
            node = v.producer
            if v in seen or node is None:
                continue
            seen.add(v)
            dropped[node] = dropped.get(node, 0) + self.layout.bytes(v.type)
            waiting += [r for r in self.roots(node.arguments) if r not in kept]
        return set(dropped), dropped


def _rows(again: Collection[Node], dropped: Mapping[Node, int], flops: Mapping[Node, int]) -> tuple[Row, ...]:
    by_op: dict[str, list[Node]] = {}
    for node in again:
        by_op.setdefault(node.op.name, []).append(node)
    rows = [Row(k, len(v), sum(dropped[n] for n in v), sum(flops[n] for n in v)) for k, v in by_op.items()]
    return tuple(sorted(rows, key=lambda r: (-r.bytes, r.op)))


def _heavy(node: Node) -> bool:
    """Whether a node multiplies matrices, or is of a kind whose cost is not known to be small."""
    if node.op.heavy or node.op.body is None:
        return node.op.heavy
    body = body_of(node.op, [None if v is None else v.type for v in node.operands], node.attributes)
    return any(_heavy(inner) for inner in body)


def blocks(graph: Graph) -> dict[Node, int]:
    """A number for each node that says which block of layers it belongs to, from the scopes its places name.

    A node outside any numbered scope belongs to the block before it, and so does a sum that opens the scope of a
    block although both of its terms come from earlier ones: a fused residual sum.
    """
    result: dict[Node, int] = {}
    names: dict[str, int] = {}
    current = 0
    for node in graph:
        name = _block_name(node.location.scope.split("."))
        if name:
            current = names.setdefault(name, len(names) + 1)
        found = [result[v.producer] for v in node.arguments if v.producer is not None]
        residual = isinstance(node.op, Add) and found and max(found) < current
        result[node] = max(found) if residual else current
    return result


def _block_name(scope: Sequence[str]) -> str:
    """The scope up to its first number."""
    for i, part in enumerate(scope):
        if part.isdecimal():
            return ".".join(scope[: i + 1])
    return ""
