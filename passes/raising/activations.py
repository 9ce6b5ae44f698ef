"""Activations by meaning: what an elementwise expression of one value gives on a grid of numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ...ir import ops
from ...ir.graph import Graph, Node, Value
from ...ir.interpret import Array, evaluate
from ...ir.ops.elementwise import (
    Abs,
    Add,
    Div,
    Erf,
    Exp,
    Log,
    Maximum,
    Minimum,
    Mul,
    Neg,
    Pow,
    Rsqrt,
    Sigmoid,
    Sqrt,
    Sub,
    Tanh,
)
from ...ir.ops.feed_forward import Gelu, Relu, Silu, Softplus
from ...ir.ops.logic import Less, LessEqual, Where
from ...ir.types import bool_
from .constants import scalar_of
from .report import Raised, RaisingReport
from .unread import erase_unread

NEAR = np.concatenate([np.linspace(-30, 30, 2401), np.linspace(-3, 3, 601), [-80.0, -60.0, 60.0, 80.0, 0.0]])
FAR = np.concatenate([s * 2.0 ** np.arange(6.5, 41, 0.5) for s in (1, -1)])
GRID = np.concatenate([NEAR, FAR])
"""Numbers on which an expression must agree with an activation; far ones where it is finite itself. A clip of what is
quantized to 0 and 255 is a ReLU of all that is near."""

FARTHEST = 14
"""Nodes of one expression at most."""

_SEEDS = ((Erf, Tanh, Sigmoid, Exp), (Maximum, Where))
_INNER = (Abs, Add, Div, Erf, Exp, Less, LessEqual, Log, Maximum, Minimum, Mul, Neg, Pow, Rsqrt, Sigmoid, Silu, Sqrt,
          Sub, Tanh, Where)  # fmt: skip

QUICK = 1.702
"""Of x * sigmoid(1.702 x), an approximation of gelu. (Hendrycks & Gimpel 2016)"""


def _quick(x: Value) -> Value:
    return ops.silu(x * QUICK) * (1 / QUICK)


_KNOWN: tuple[tuple[str, Callable[[Array], Array], Callable[[Value], Value]], ...] = (
    ("gelu", lambda x: evaluate(Gelu(), [x], {"tanh": False}, {})[0], lambda x: ops.gelu(x)),
    ("gelu", lambda x: evaluate(Gelu(), [x], {"tanh": True}, {})[0], lambda x: ops.gelu(x, tanh=True)),
    ("silu", lambda x: evaluate(Silu(), [x], {}, {})[0], lambda x: ops.silu(x)),
    ("softplus", lambda x: evaluate(Softplus(), [x], {}, {})[0], lambda x: ops.softplus(x)),
    ("relu", lambda x: evaluate(Relu(), [x], {}, {})[0], lambda x: ops.relu(x)),
    ("silu", lambda x: evaluate(Silu(), [x * QUICK], {}, {})[0] / QUICK, _quick),
)


class Activations:
    """Finds activations in one graph; what the known ones give on the grid is computed once."""

    def __init__(self, graph: Graph, report: RaisingReport) -> None:
        self.graph, self.report = graph, report
        self.expected = [(name, function(GRID), build) for name, function, build in _KNOWN]

    def run(self) -> int:
        """Replace activations by their ops. Gives how many."""
        raised = 0
        for seeds in _SEEDS:
            for node in [n for n in self.graph if isinstance(n.op, seeds)]:
                if node.order >= 0 and node.output.dtype.is_float and self._raise_at(node):
                    raised += 1
        return raised

    def _raise_at(self, seed: Node) -> bool:
        for source in _sources(seed):
            for outer in _roots(seed, source):
                build = self._recognised(outer, source)
                if build is None:
                    continue
                name, make = build
                root = self._without_number(outer, source, name)
                with self.graph.at(root.producer):
                    new = make(source)
                assert root.producer is not None
                self.report.raised.append(Raised(name, root.producer.location))
                self.graph.replace(root, new)
                erase_unread(self.graph, root)
                return True
        return False

    def _without_number(self, root: Value, source: Value, name: str) -> Value:
        """The activation in its sum with a number so small that the grid does not show it: an epsilon stays."""
        node = root.producer
        while node is not None and isinstance(node.op, (Add, Sub)) and scalar_of(node.arguments[1]) is not None:
            inner = node.arguments[0]
            found = None if inner is source else self._recognised(inner, source)
            if found is None or found[0] != name:
                break
            root, node = inner, inner.producer
        return root

    def _recognised(self, root: Value, source: Value) -> tuple[str, Callable[[Value], Value]] | None:
        if root.type != source.type:
            return None
        found = _on_grid(root, source)
        if found is None:
            return None
        # Rounded in the type of the graph: a few steps of it, where numbers are as large as x.
        step = 4e-6 if source.dtype.bits >= 32 else 2e-2
        bound = step * np.maximum(1.0, np.abs(GRID))
        beyond = np.append(np.zeros(NEAR.size, np.bool_), ~np.isfinite(found[NEAR.size :]))
        for name, expected, build in self.expected:
            with np.errstate(invalid="ignore"):
                alike = np.abs(found - expected) <= bound
            if bool(np.all(alike | beyond)):
                return name, build
        return None


def _sources(seed: Node) -> Iterator[Value]:
    """Values that the seed may be a function of, nearest first."""
    seen: dict[Value, None] = {}
    waiting = [v for v in seed.arguments if v.dtype != bool_]
    waiting += [x for v in seed.arguments if v.dtype == bool_ and v.producer is not None for x in v.producer.arguments]
    while waiting and len(seen) < FARTHEST:
        v = waiting.pop(0)
        if scalar_of(v) is not None or v in seen:
            continue
        seen[v] = None
        if v.producer is not None and isinstance(v.producer.op, _INNER):
            waiting += v.producer.arguments
    return iter(seen)


def _roots(seed: Node, source: Value) -> list[Value]:
    """Values that are functions of the source through the seed, last first."""
    inside: set[Value] = {source}
    found: list[Value] = []
    waiting = [seed]
    while waiting and len(found) < FARTHEST:
        node = waiting.pop(0)
        if not isinstance(node.op, _INNER) or node.output in inside:
            continue
        if not all(
            x in inside or scalar_of(x) is not None or _function_of(x, source, FARTHEST) for x in node.arguments
        ):
            continue
        inside.add(node.output)
        found.append(node.output)
        waiting += node.output.users
    return sorted(found, key=lambda v: -v.producer.order if v.producer else 0)


def _function_of(v: Value, source: Value, left: int) -> bool:
    if v is source or scalar_of(v) is not None:
        return True
    node = v.producer
    if node is None or not left or not isinstance(node.op, _INNER):
        return False
    return all(_function_of(x, source, left - 1) for x in node.arguments)


def _on_grid(root: Value, source: Value) -> Array | None:
    with np.errstate(over="ignore"):
        known: dict[Value, Array] = {source: GRID.astype(source.dtype.numpy)}

    def compute(v: Value) -> Array:
        if v not in known:
            number, node = scalar_of(v), v.producer
            if number is not None:
                known[v] = np.asarray(number).astype(v.dtype.numpy)
            else:
                assert node is not None
                known[v] = evaluate(node.op, [compute(x) for x in node.arguments], node.attributes, {})[0]
        return known[v]

    with np.errstate(over="ignore", invalid="ignore"):
        found = compute(root)
    return found.astype(np.float64) if found.shape == GRID.shape else None
