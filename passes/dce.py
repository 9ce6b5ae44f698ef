"""Remove nodes whose results nothing needs."""

from __future__ import annotations

from ..ir.graph import Graph


def dce(graph: Graph) -> int:
    """Erase unused nodes, last first; parameters without users are forgotten. Gives the number of nodes erased."""
    erased = 0
    kept = set(graph.outputs.values())
    for node in graph.reversed():
        if not any(v.uses or v in kept for v in node.outputs):
            graph.erase(node)
            erased += 1
    for path in [k for k, v in graph.params.items() if not v.uses and v not in kept]:
        del graph.params[path]
    return erased
