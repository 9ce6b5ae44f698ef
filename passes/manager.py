"""Passes and pipelines: run in order, verify after each, time, count, dump, and check numbers against the reference."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..ir.errors import MonographError, PassError
from ..ir.graph import Graph
from ..ir.verify import verify
from .pattern import NearMiss, Report, Rewrite, Rule, apply_rewrites


class Pass(Protocol):
    """Changes a graph in place; gives counts of what it did and the near misses it saw."""

    @property
    def name(self) -> str: ...

    def run(self, graph: Graph) -> Report: ...


@dataclass(frozen=True)
class FunctionPass:
    """A pass from a function that returns how many changes it made."""

    name: str
    function: Callable[[Graph], int]

    def run(self, graph: Graph) -> Report:
        return Report({self.name: self.function(graph)})


class RewritePass:
    """A pass from a list of rewrites, tried together; the variants are traced once."""

    def __init__(self, name: str, rewrites: Sequence[Rewrite]) -> None:
        self.name = name
        self.rewrites = rewrites
        self._rules: list[Rule] | None = None

    def run(self, graph: Graph) -> Report:
        if self._rules is None:
            self._rules = [Rule(r) for r in self.rewrites]
        return apply_rewrites(graph, self._rules)


@dataclass(frozen=True)
class Step:
    """What one pass did: seconds, nodes before and after, counts by rewrite."""

    name: str
    seconds: float
    before: int
    after: int
    counts: dict[str, int]


@dataclass
class PipelineReport:
    """All steps of a run in order, and the near misses that are still open."""

    steps: list[Step] = field(default_factory=list[Step])
    misses: list[NearMiss] = field(default_factory=list[NearMiss])

    @property
    def seconds(self) -> float:
        return sum(s.seconds for s in self.steps)

    @property
    def counts(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for step in self.steps:
            for name, n in step.counts.items():
                total[name] = total.get(name, 0) + n
        return total


Check = Callable[[Graph, Graph], str | None]
"""(graph before, graph after) -> None if they compute the same, else what differs (see passes/differential.py)."""


@dataclass(frozen=True)
class Pipeline:
    """A named list of passes.

    `run` changes the graph in place. verify: check structure and types after each pass. dump: folder for the text
    after each pass. check: compare numbers across each pass; on a difference both graphs are saved to `dump`.
    Raises PassError naming the pass.
    """

    name: str
    passes: Sequence[Pass]

    def run(
        self, graph: Graph, *, verify: bool = True, dump: Path | None = None, check: Check | None = None
    ) -> PipelineReport:
        report = PipelineReport()
        count = len(graph)
        for index, step in enumerate(self.passes):
            before = graph.copy() if check is not None else None
            start = time.perf_counter()
            found = step.run(graph)
            seconds = time.perf_counter() - start
            after = len(graph)
            report.steps.append(Step(step.name, seconds, count, after, found.counts))
            report.misses += found.misses
            count = after
            if dump is not None:
                dump.mkdir(parents=True, exist_ok=True)
                (dump / f"{index:02d}-{step.name}.txt").write_text(str(graph))
            if verify:
                _verified(graph, step.name)
            if check is not None and before is not None:
                _checked(before, graph, step.name, check, dump)
        return report


def _verified(graph: Graph, name: str) -> None:
    try:
        verify(graph)
    except MonographError as e:
        raise PassError(f"pass {name} left a graph that does not verify", details=str(e).splitlines()) from e


def _checked(before: Graph, after: Graph, name: str, check: Check, dump: Path | None) -> None:
    difference = check(before, after)
    if difference is None:
        return
    details = difference.splitlines()
    if dump is not None:
        for label, g in (("before", before), ("after", after)):
            path = dump / f"failed-{name}-{label}.txt"
            path.write_text(str(g))
            details.append(f"{label}: {path}")
    raise PassError(f"pass {name} changed what the graph computes", details=details)
