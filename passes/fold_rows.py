"""Rows over one source: what an encoder left behind is read once, however many rows follow a source."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ..ir.graph import Graph, Node, Value
from ..ir.ops.attention import Attention
from ..ir.ops.shape import reshape
from ..ir.slots import FOLD, SOURCES, Growth
from ..ir.types import Dim
from .pattern import NearMiss, Report
from .symbols import substitute_symbols, values_of


class FoldRows:
    """Tell sources from the rows that follow them: G sources of F rows each side by side, so that B = G*F.

    What an encoder left behind, and masks over it, get G rows. Attention over them takes the rows of a source for more
    queries of it, q [G*F,S,H,D] as [G,F*S,H,D]: beams read keys and values once between them. A graph of which
    anything but attention without causality reads a source stays as it is. sources: inputs that come from outside
    and belong to a source, beside the slots that an encoder fills.
    """

    name = "fold_rows"

    def __init__(self, sources: Collection[str]) -> None:
        self.sources = sources

    def run(self, graph: Graph) -> Report:
        report = Report({self.name: 0})
        batch = _batch(graph)
        lasting = self.lasting(graph)
        crossing = [n for n in graph if any(v in lasting for v in n.arguments) and n.outputs[0] not in lasting]
        if batch is None or not crossing:
            return report
        reasons = {n: _reason(n, lasting, batch) for n in graph}
        if any(reasons.values()):
            misses = ((n, reason) for n, reason in reasons.items() if reason)
            report.misses = [NearMiss(self.name, n.location, r, 1, 1, frozenset(), True) for n, r in misses]
            return report
        groups, fold = Dim.symbol(SOURCES), Dim.symbol(FOLD)
        others = {v for v in values_of(graph) if v not in lasting}
        substitute_symbols(graph, {batch: groups}, where=lasting)
        substitute_symbols(graph, {batch: groups * fold}, where=others)
        for node in crossing:
            with graph.at(node):
                _fold(graph, node, groups, fold)
        graph.slots = tuple(replace(s, type=graph.inputs[s.input].type) for s in graph.slots)
        report.counts[self.name] = len(crossing)
        return report

    def lasting(self, graph: Graph) -> set[Value]:
        """Values that stay as they are for a source."""
        once = {s.input for s in graph.slots if s.growth is Growth.once}
        found = {v for k, v in graph.inputs.items() if k in once or k in self.sources}
        for node in graph:
            read = [v for v in node.arguments if v in found]
            if read and all(v in found or not v.type.symbols for v in node.arguments):
                found.update(node.outputs)
        return found


def _batch(graph: Graph) -> str | None:
    """The symbol for rows, if it may be told apart."""
    ids = graph.inputs.get(graph.stream.ids) if graph.stream is not None else None
    d = ids.shape[0] if ids is not None else None
    used = {s for v in values_of(graph) for s in v.type.symbols}
    return d.name if isinstance(d, Dim) and not {SOURCES, FOLD} & used else None


def _reason(node: Node, lasting: set[Value], batch: str) -> str:
    """Why the rows of a source cannot be queries of it here; "" if they can, or the node reads no source."""
    read = [v for v in node.arguments if v in lasting]
    if not read or node.outputs[0] in lasting:
        return ""
    if not isinstance(node.op, Attention):
        return f"{node.op.name} reads what a source left behind, and is no attention"
    if node.attributes["causal"]:
        return "its keys are those of a source, and it is causal"
    for name in ("k", "v"):
        if node[name] not in lasting:
            return f"{name} does not come from a source alone"
    for name in ("bias", "mask", "lengths"):
        v = node[name]
        if v is None or v in lasting:
            continue
        if batch in v.type.symbols or (v.rank > 1 and v.shape[-2] != 1):
            return f"{name} {v.type} is not one for all queries of a source"
    wide = [v for v in (node["bias"], node["mask"]) if v is not None and v.rank > 1 and v.shape[-2] != 1]
    return f"{wide[0].type} tells queries apart" if wide else ""


def _fold(graph: Graph, node: Node, groups: Dim, fold: Dim) -> None:
    q = node.value("q")
    _, length, heads, width = q.shape
    wide = reshape(q, shape=(groups, fold * length, heads, width))
    (y,) = graph.add(node.op, (wide, *node.operands[1:]), node.attributes)
    graph.replace(node.output, reshape(y, shape=(*q.shape[:3], y.shape[3])))
    graph.erase(node)
