"""What a run tells the PyTorch backend of the memory that its settings allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ir.errors import ConfigError
from ..ir.graph import Graph
from .settings import Settings

MEGABYTE = 1_000_000


def budget(
    graph: Graph, settings: Settings, rows: int, frozen: Sequence[str], *, shared: bool = False
) -> dict[str, Any]:
    """Arguments of `to_torch` under `settings.memory`; none without it. rows: computed at a time by a process.

    shared: processes share layers. Raises ConfigError where they do.
    """
    if settings.memory is None:
        return {}
    if shared:
        raise ConfigError("memory goes with one process or with strategy ddp, whose processes hold whole layers")
    sizes = part_sizes(graph, rows, settings.length)
    return {"memory": settings.memory * MEGABYTE, "sizes": sizes, "frozen": frozen}


def part_sizes(graph: Graph, rows: int, length: int) -> dict[str, int]:
    """Sizes of the symbolic dimensions of the inputs: rows for the first one of each input, tokens for the others."""
    first = {s for v in graph.inputs.values() if v.shape for s in _symbols(v.shape[0])}
    every = {s for v in graph.inputs.values() for s in v.type.symbols}
    return {s: rows if s in first else length for s in sorted(every)}


def _symbols(d: Any) -> frozenset[str]:
    return getattr(d, "symbols", frozenset())
