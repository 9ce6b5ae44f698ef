"""The module that a run trains, within the memory that its settings allow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..backends.torch import to_torch
from ..ir.graph import Graph
from ..ir.weights import Weights
from ..passes.pipelines import train as train_pipeline
from .settings import Settings

MEGABYTE = 1_000_000


def module_of(graph: Graph, weights: Weights, settings: Settings, trains: Callable[[str], bool], rows: int) -> Any:
    """The training module of a graph on the device of the run; parameters that `trains` denies get no gradient.

    rows: of a batch to each one that `settings.batch` counts. Raises MemoryBudgetError where `settings.memory` is less
    than the activations of one part of a batch take at least.
    """
    ready = train_pipeline(graph)
    module: Any = to_torch(
        ready,
        weights,
        memory=None if settings.memory is None else settings.memory * MEGABYTE,
        sizes=part_sizes(ready, rows * settings.batch // settings.accumulate, settings.length),
        frozen=[name for name in graph.params if not trains(name)],
    )
    for name, p in module.to(settings.device).named_parameters():
        p.requires_grad_(trains(name))
    return module


def part_sizes(graph: Graph, rows: int, length: int) -> dict[str, int]:
    """Sizes of the symbolic dimensions of the inputs: rows for the first one of each input, tokens for the others."""
    first = {s for v in graph.inputs.values() if v.shape for s in _symbols(v.shape[0])}
    every = {s for v in graph.inputs.values() for s in v.type.symbols}
    return {s: rows if s in first else length for s in sorted(every)}


def _symbols(d: Any) -> frozenset[str]:
    return getattr(d, "symbols", frozenset())
