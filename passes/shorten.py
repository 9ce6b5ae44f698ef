"""Fewer layers: a graph of repeated layers as one with some of them, for measurements that add up to the whole.

Layers are told by the names of their parameters (`model.layers.3.mlp.weight` belongs to layer 3 of `model.layers`). A
layer can go where one value alone runs from the layer before it, and one of the same type to the layer behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ..ir.graph import Graph, Node, Value
from .dce import dce

OUTSIDE = -1
"""The layer of what comes before the first one."""


@dataclass(frozen=True)
class Layer:
    """A layer of a stack. kind: equal for layers that compute the same with other weights. removable: see above."""

    stack: str
    index: int
    kind: str
    removable: bool


@dataclass(frozen=True)
class Shortened:
    """Which layers measurements need.

    base: those of the shortest graph. more: for each kind that has more, one layer of it that `base` lacks, and how
    many the whole graph has beyond those of `base`.
    """

    base: frozenset[Layer]
    more: tuple[tuple[Layer, int], ...]


def layers_of(graph: Graph) -> list[Layer]:
    """The layers of every stack of at least two, in order."""
    found: list[Layer] = []
    for stack, count in _stacks(graph).items():
        found += _Stack(graph, stack, count).layers()
    return found


def shortened(layers: Iterable[Layer]) -> Shortened | None:
    """One layer of each kind, and one more of each kind that is repeated; None where no layer can go."""
    layers = list(layers)
    base = {layer for layer in layers if not layer.removable}
    more: list[tuple[Layer, int]] = []
    for stack, kind in dict.fromkeys((layer.stack, layer.kind) for layer in layers):
        alike = [layer for layer in layers if (layer.stack, layer.kind) == (stack, kind)]
        free = [layer for layer in alike if layer.removable]
        if free and len(free) == len(alike):
            base.add(free[-1])
            free = free[:-1]
        if free:
            more.append((free[-1], len(free)))
    return Shortened(frozenset(base), tuple(more)) if more else None


def without(graph: Graph, kept: Collection[Layer]) -> Graph:
    """A copy of the graph with those layers of its stacks only."""
    new = graph.copy()
    for stack, count in _stacks(graph).items():
        own = {layer.index for layer in kept if layer.stack == stack}
        _Stack(new, stack, count).remove([i for i in range(count) if i not in own])
    dce(new)
    return new


def _place(path: str) -> tuple[str, int] | None:
    """(stack, layer) of a parameter: what its name has before and as its first number."""
    parts = path.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return None if not at else (".".join(parts[:at]), int(parts[at]))


def _stacks(graph: Graph) -> dict[str, int]:
    """How many layers each stack has; those whose numbers have gaps are none."""
    found: dict[str, set[int]] = {}
    for path in graph.params:
        place = _place(path)
        if place is not None:
            found.setdefault(place[0], set()).add(place[1])
    return {name: len(own) for name, own in found.items() if len(own) > 1 and own == {*range(len(own))}}


class _Stack:
    """A stack of a graph: which layer each value belongs to, and what runs from one to the next."""

    def __init__(self, graph: Graph, name: str, count: int) -> None:
        self.graph, self.name, self.count = graph, name, count
        self.level: dict[Value, int] = {}
        for v in (*graph.inputs.values(), *graph.params.values()):
            place = _place(v.name) if v.is_param else None
            self.level[v] = place[1] if place is not None and place[0] == name else OUTSIDE
        self.nodes: dict[int, list[Node]] = {}
        for node in graph:
            level = max((self.level[v] for v in node.arguments), default=OUTSIDE)
            self.level.update(dict.fromkeys(node.outputs, level))
            self.nodes.setdefault(level, []).append(node)
        self.streams = [self.stream(i) for i in range(count)]

    def stream(self, index: int) -> Value | None:
        """The one value that runs into a layer from what comes before it; None where several do."""
        inside = self.nodes.get(index, [])
        if index:
            given = {v for node in self.graph for v in node.arguments if self.level[v] == index - 1
                     and self.level[node.outputs[0]] >= index}  # fmt: skip
            given |= {v for v in self.graph.outputs.values() if self.level[v] == index - 1}
        else:
            following = self.stream(1)
            given = {v for node in inside for v in node.arguments if self.level[v] == OUTSIDE and not v.is_param
                     and following is not None and v.type == following.type}  # fmt: skip
        (only,) = given if len(given) == 1 else (None,)
        return only

    def removable(self, index: int) -> bool:
        """Whether a layer can go. The last one, whose end nothing marks, cannot."""
        if index == self.count - 1:
            return False
        before, after = self.streams[index], self.streams[index + 1]
        return before is not None and after is not None and before.type == after.type

    def layers(self) -> list[Layer]:
        texts = [self.text(i) for i in range(self.count)]
        # Behind the last layer comes what nothing tells from it: it is of the kind that it begins as.
        likely = Counter(t for t in texts[:-1] if texts[-1].startswith(t)).most_common(1)
        kinds = [*texts[:-1], likely[0][0] if likely else texts[-1]]
        return [Layer(self.name, i, kind, self.removable(i)) for i, kind in enumerate(kinds)]

    def text(self, index: int) -> str:
        """What a layer computes: types of its parameters, ops and attributes in order."""
        lead = f"{self.name}.{index}."
        own = [f"{k.removeprefix(lead)} {v.type}" for k, v in self.graph.params.items() if k.startswith(lead)]
        nodes = [f"{n.op.name} {sorted(n.attributes.items())} {[str(v.type) for v in n.outputs]}"
                 for n in self.nodes.get(index, [])]  # fmt: skip
        return "\n".join([*sorted(own), *nodes])

    def remove(self, indices: Iterable[int]) -> None:
        """Take layers out: what reads the end of one reads its beginning."""
        stands: dict[Value, Value] = {}
        for index in sorted(indices):
            before, after = self.streams[index], self.streams[index + 1]
            assert before is not None and after is not None
            before = stands.get(before, before)
            stands[after] = before
            for node, i in list(after.uses):
                if self.level[node.outputs[0]] > index:
                    self.graph.set_operand(node, i, before)
