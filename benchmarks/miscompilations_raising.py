"""Layers that raising makes, with one attribute changed: does the comparison before each of them see it?"""

from __future__ import annotations

import importlib
import random
import time
from collections.abc import Sequence
from typing import Any

from miscompilations_kinds import Count, changed, seen
from monograph.ir.graph import Graph, Node
from monograph.ir.tensors import held
from monograph.passes.raising.check import Check, Trial

MODULE: Any = importlib.import_module("monograph.passes.raising.raise_graph")
MORE = tuple(Trial(mask, 4, 19, 100 + i, i % 2 == 1) for i, mask in enumerate(("holed", "left-padded") * 3))


class Mutated(Check):
    """Holds a mutant of each layer that raising makes against what it was made of, and lets the layer itself be."""

    count: Count
    rng: random.Random

    def difference(
        self, old: Any, new: Any, cuts: Any, allowed: Any, alive: Any = None, *, numbers: bool = False
    ) -> str | None:
        made = [n for n in allowed if n.op.body is not None and n.outputs[0].type.dtype.is_float]
        start = time.process_time()
        right = super().difference(old, new, cuts, allowed, alive, numbers=numbers)
        self.count.work += time.process_time() - start
        for node in made if right is None else []:
            for name, value in sorted(node.attributes.items()):
                other = changed(value, self.rng)
                if other != value:
                    self.mutant(node, name, other, (old, new, cuts, allowed, alive))
        return right

    def mutant(self, node: Node, name: str, value: Any, given: tuple[Any, ...]) -> None:
        """Change an attribute in place, compare, and change it back."""
        old = node.attributes
        before = list(self.accepted)
        node.attributes = {**old, name: value}  # type: ignore[misc]
        start = time.process_time()
        wrong = seen(lambda: super(Mutated, self).difference(*given))
        self.count.check += time.process_time() - start
        kind = f"{node.op.name}.{name}"
        self.count.total += 1
        if wrong:
            self.count.caught["raising"] += 1
        else:
            tighter = Check(self.graph, self.read, MORE)
            told = seen(lambda: tighter.difference(*given))
            (self.count.slipped if told else self.count.equal)[kind] += 1
        node.attributes = old
        self.accepted[:] = before


def of_raising(seed: int, count: Count, files: Sequence[tuple[Graph, Any]]) -> None:
    """Mutants of all layers that raising makes of the files."""
    rng = random.Random(seed)

    def checked(*given: Any, **settings: Any) -> Check:
        made = Mutated(*given, **settings)
        made.count, made.rng = count, rng
        return made

    MODULE.Check = checked
    try:
        for graph, weights in files:

            def read(name: str, graph: Graph = graph, weights: Any = weights) -> Any:
                return held(weights[name], graph.params[name].type, name)

            MODULE.raise_graph(graph.copy(), read)
    finally:
        MODULE.Check = Check
