"""The history of a graph through a pipeline, as plain data: every node once, every state as a list of nodes."""

from __future__ import annotations

import linecache
import time
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from ..ir.graph import Graph
from ..ir.text import format_attribute
from ..ir.value import Node, Value
from ..passes.manager import Pipeline
from ..passes.pattern import NearMiss
from .architecture import numbered
from .vocabulary import ROLES

_LONG, _AROUND = 400, 2


class Watched(Graph):
    """A graph that remembers which value took the place of which."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.name)
        self.replaced: list[tuple[Value, Value]] = []
        self.become(graph.copy())

    def replace(self, old: Value, new: Value) -> None:
        self.replaced.append((old, new))
        super().replace(old, new)


def history(graph: Graph, pipeline: Pipeline) -> dict[str, Any]:
    """Run the passes on a copy of the graph; gives what the page shows."""
    watched, book = Watched(graph), _Book()
    states = [book.state(watched)]
    passes: list[dict[str, Any]] = []
    misses: list[NearMiss] = []
    for step in pipeline.passes:
        before, count = list(watched), len(watched)
        reads = {n: list(n.operands) for n in before}
        watched.replaced = []
        start = time.perf_counter()
        found = step.run(watched)
        milliseconds = 1e3 * (time.perf_counter() - start)
        misses += found.misses
        book.follow(before, watched)
        state = book.state(watched)
        state["groups"] = book.groups(before, reads, watched)
        if {k: v for k, v in state.items() if k != "groups"} != {k: v for k, v in states[-1].items() if k != "groups"}:
            states.append(state)
        passes.append(
            {
                "name": step.name,
                "ms": round(milliseconds, 2),
                "before": count,
                "after": len(watched),
                "counts": {k: n for k, n in found.counts.items() if n},
                "state": len(states) - 1,
            }
        )
    return {
        "name": graph.name,
        "pipeline": pipeline.name,
        "passes": passes,
        "states": states,
        "misses": [book.miss(m) for m in misses],
        **book.tables(),
    }


class _Book:
    """Numbers for values, nodes, types, places: what occurs often is written once."""

    def __init__(self) -> None:
        self.values: dict[Value, int] = {}
        self.params: dict[str, int] = {}
        self.leaves: dict[int, list[Any]] = {}
        self.known: dict[tuple[Any, ...], int] = {}
        self.nodes: list[list[Any]] = []
        self.record: dict[Node, int] = {}
        self.index: dict[str, dict[str, int]] = {k: {} for k in ("ops", "types", "files", "scopes")}
        self.roles: dict[str, str] = {}
        self.lines: dict[str, list[Any]] = {}

    def number(self, kind: str, text: str) -> int:
        return self.index[kind].setdefault(text, len(self.index[kind]))

    def value(self, value: Value) -> int:
        found = self.values.setdefault(value, len(self.values))
        if value.producer is None and found not in self.leaves:
            if value.is_param:
                self.params[value.name] = found
            self.leaves[found] = ["param" if value.is_param else "input", value.name, str(value.type)]
        return found

    def follow(self, before: list[Node], graph: Graph) -> None:
        """Nodes of a graph that a pass built anew are those before it with the same op at the same place."""
        after = list(graph)
        if any(n in self.record for n in after):
            return
        for p in graph.params.values():
            old = self.params.get(p.name)
            if old is not None:
                self.values[p] = old
        a, b = ([(n.op.name, n.location) for n in nodes] for nodes in (before, after))
        for block in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks():
            for i in range(block.size):
                old, new = before[block.a + i], after[block.b + i]
                self.values.update((v, self.value(u)) for u, v in zip(old.outputs, new.outputs, strict=True))

    def place(self, file: str, line: int) -> int:
        """The number of a source file; the lines around the place are kept."""
        name = Path(file).name
        number = self.number("files", name)
        key = f"{number}:{line}"
        if file and key not in self.lines:
            first = max(1, line - _AROUND)
            text = [linecache.getline(file, i).rstrip("\n") for i in range(first, line + _AROUND + 1)]
            self.lines[key] = [first, text] if any(text) else []
        return number

    def node(self, node: Node, still: bool) -> int:
        defaults = node.op.signature.attributes
        said = [
            f"{k}={format_attribute(v)}" for k, v in node.attributes.items() if k not in defaults or v != defaults[k]
        ]
        attributes = ", ".join(said)
        if len(attributes) > _LONG:
            attributes = f"{attributes[:_LONG]}… ({len(attributes):,} characters)"
        place = node.location
        made = (
            self.number("ops", node.op.name),
            attributes,
            tuple(None if v is None else self.value(v) for v in node.operands),
            tuple(map(self.value, node.outputs)),
            tuple(self.number("types", str(v.type)) for v in node.outputs),
            self.place(place.file, place.line),
            place.line,
            self.number("scopes", place.scope),
            int(still),
        )
        if made not in self.known:
            self.known[made] = len(self.nodes)
            self.nodes.append([list(x) if isinstance(x, tuple) else x for x in made])
            if node.op in ROLES:
                self.roles[node.op.name] = ROLES[node.op][0].value
        self.record[node] = self.known[made]
        return self.known[made]

    def state(self, graph: Graph) -> dict[str, Any]:
        """The nodes of a graph as runs of numbers, and its outputs."""
        still = set(graph.params.values())
        order: list[int] = []
        for node in graph:
            fixed = all(v in still for v in node.arguments)
            if fixed:
                still.update(node.outputs)
            order.append(self.node(node, fixed))
        runs: list[list[int]] = []
        for n in order:
            if runs and runs[-1][0] + runs[-1][1] == n:
                runs[-1][1] += 1
            else:
                runs.append([n, 1])
        return {"order": runs, "outputs": {k: self.value(v) for k, v in graph.outputs.items()}}

    def groups(self, before: list[Node], reads: dict[Node, list[Value | None]], graph: Watched) -> list[list[int]]:
        """[old node, new node] for each node that was taken into another, by the numbers of their records."""
        gone = {n for n in before if n.order < 0}
        old = set(before)
        found: dict[Node, Node] = {}
        earlier: dict[Value, list[Value]] = {}
        for was, now in graph.replaced:
            earlier.setdefault(now, []).append(was)
        for was, now in graph.replaced:
            new = now.producer
            if new is None or new in old or new.order < 0 or was.producer not in gone:
                continue
            stop = {v for a in new.arguments for v in (a, *earlier.get(a, ()))}
            waiting = [was.producer]
            while waiting:
                node = waiting.pop()
                if node is None or node not in gone or node in found:
                    continue
                found[node] = new
                waiting += [v.producer for v in reads[node] if v is not None and v not in stop]
        return [[self.record[a], self.record[b]] for a, b in found.items()]

    def miss(self, miss: NearMiss) -> dict[str, Any]:
        place = miss.location
        return {
            "rewrite": miss.rewrite,
            "reason": miss.reason,
            "matched": miss.matched,
            "size": miss.size,
            "file": self.place(place.file, place.line),
            "line": place.line,
            "scope": self.number("scopes", place.scope),
        }

    def tables(self) -> dict[str, Any]:
        layers = {s: numbered(s) for s in self.index["scopes"]}
        names = list(dict.fromkeys(layers.values()))
        return {
            "nodes": self.nodes,
            "leaves": self.leaves,
            **{k: list(v) for k, v in self.index.items()},
            "layers": names,
            "layer_of": [names.index(layers[s]) for s in self.index["scopes"]],
            "roles": self.roles,
            "lines": self.lines,
        }
