"""Low-rank adapters as graph passes: put beside linear layers, and merged into their weights. (Hu et al. 2021)"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from ..ir import ops
from ..ir.errors import PassError, did_you_mean
from ..ir.graph import Graph, Node, Value
from ..ir.init import Init
from ..ir.ops import linear, matmul, transpose
from ..ir.ops.linear import Linear
from ..ir.types import TensorType
from .pattern import Rewrite, apply_rewrites

ALL = "all-linear"
"""Every linear layer but the one that gives an output of the model."""
DOWN, UP = "lora_A.weight", "lora_B.weight"


def add_lora(graph: Graph, rank: int, alpha: float, targets: str | Sequence[str], dropout: float = 0.0) -> int:
    """y = linear(x, w, b) gets + linear(linear(dropout(x), A), B) * (alpha / rank), at every chosen layer.

    Parameters are `<module>.lora_A.weight` [rank, in], uniform within 1/sqrt(in) as PEFT starts it, and
    `<module>.lora_B.weight` [out, rank], zeros: at first the graph computes what it did. targets: names that a module
    path must equal or end in ("q_proj"), or one text: ALL, or a regular expression for whole paths. Run it on the
    plain graph: fused blocks hide their linears. Gives the number of layers. Raises PassError for a rank or dropout
    that cannot be, a target that names no linear layer, and a layer that has an adapter.
    """
    if rank < 1 or not 0 <= dropout < 1 or not math.isfinite(alpha):
        raise PassError(f"rank is {rank}, alpha {alpha}, dropout {dropout}: expected rank >= 1 and 0 <= dropout < 1")
    chosen = select(graph, targets)
    for module in chosen:
        if f"{module}.{DOWN}" in graph.params:
            raise PassError(f"{module} already has an adapter", place=graph.name)
    for module, nodes in chosen.items():
        for node in nodes:
            _adapt(graph, node, module, rank, alpha / rank, dropout)
    return sum(map(len, chosen.values()))


def _adapt(graph: Graph, node: Node, module: str, rank: int, scale: float, dropout: float) -> None:
    x, w = node.value("x"), node.value("w")
    transposed: bool = node.attributes["transposed"]
    rows, columns = w.shape if transposed else (w.shape[1], w.shape[0])
    assert isinstance(rows, int), f"{w!r} has no fixed width"
    down = graph.param(f"{module}.{DOWN}", TensorType(w.dtype, (rank, rows)), Init("uniform", (3 * rows) ** -0.5))
    up = graph.param(f"{module}.{UP}", TensorType(w.dtype, (columns, rank)), Init("zeros"))
    with graph.at(node):
        y = linear(x, w, node["b"], transposed=transposed)
        h = ops.dropout(x, p=dropout) if dropout else x
        y = y + linear(linear(h, down), up) * scale
    graph.replace(node.output, y)
    graph.erase(node)


def modules(graph: Graph) -> dict[str, list[Node]]:
    """Linear layers by module path (that of their weight, a parameter that nothing but linear layers reads)."""
    found: dict[str, list[Node]] = {}
    for node in graph:
        w = node.value("w") if isinstance(node.op, Linear) else None
        if w is not None and w.is_param and w.name.endswith(".weight") and all(n.op is node.op for n in w.users):
            found.setdefault(w.name.removesuffix(".weight"), []).append(node)
    return found


def select(graph: Graph, targets: str | Sequence[str]) -> dict[str, list[Node]]:
    """The linear layers that `targets` (of `add_lora`) name. Raises PassError for a target that names none."""
    known = modules(graph)
    if targets == ALL:
        return {m: nodes for m, nodes in known.items() if not any(graph.is_output(n.output) for n in nodes)}
    names = [targets] if isinstance(targets, str) else list(targets)
    matches = _matches if isinstance(targets, str) else _ends
    for name in names or [""]:
        if not any(matches(m, name) for m in known):
            last = sorted({m.rpartition(".")[2] for m in known})
            what = f"target {name!r} names no linear layer with a weight of its own{did_you_mean(name, last)}"
            raise PassError(what, place=graph.name, hint=f"known: {', '.join(last)}")
    return {m: nodes for m, nodes in known.items() if any(matches(m, name) for name in names)}


def _ends(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _matches(module: str, pattern: str) -> bool:
    try:
        return re.fullmatch(pattern, module) is not None
    except re.error as e:
        raise PassError(f"target {pattern!r} is not a regular expression: {e}") from None


def lora_params(graph: Graph) -> list[str]:
    """The paths of all adapter parameters."""
    return [path for path in graph.params if path.endswith((f".{DOWN}", f".{UP}"))]


class MergeLora(Rewrite):
    """linear(x, w, b) + linear(linear(x, A), B) * s  =>  linear(x, w + (B * s) @ A, b)."""

    def before(
        self, x: Value, w: Value, down: Value, up: Value, b: Value | None = None, *, scale: float, transposed: bool
    ) -> Value:
        return linear(x, w, b, transposed=transposed) + linear(linear(x, down), up) * scale

    def when(self, **bound: Any) -> bool | str:
        return is_adapter(bound["w"], bound["down"], bound["up"])

    def after(
        self, x: Value, w: Value, down: Value, up: Value, b: Value | None = None, *, scale: float, transposed: bool
    ) -> Value:
        delta = matmul(up * scale, down)
        merged = w + (transpose(delta, permutation=(1, 0)) if transposed else delta)
        return linear(x, merged, b, transposed=transposed)


class MergeLoraDropout(MergeLora):
    """The same under dropout, which only training has."""

    def before(  # type: ignore[override]
        self,
        x: Value,
        w: Value,
        down: Value,
        up: Value,
        b: Value | None = None,
        *,
        scale: float,
        transposed: bool,
        p: float,
    ) -> Value:
        adapter = linear(linear(ops.dropout(x, p=p), down), up) * scale
        return linear(x, w, b, transposed=transposed) + adapter

    def after(  # type: ignore[override]
        self,
        x: Value,
        w: Value,
        down: Value,
        up: Value,
        b: Value | None = None,
        *,
        scale: float,
        transposed: bool,
        p: float,
    ) -> Value:
        return super().after(x, w, down, up, b, scale=scale, transposed=transposed)


def is_adapter(w: Value, down: Value, up: Value) -> bool | str:
    """Whether these are the weight and adapter of one module, or why not."""
    fits = w.is_param and down.is_param and up.is_param
    base = w.name.removesuffix("weight")
    return (fits and (down.name, up.name) == (base + DOWN, base + UP)) or f"{down!r} is not the adapter of {w!r}"


def merge_lora(graph: Graph) -> int:
    """Weights with adapters become the expression w + alpha/rank * B @ A over parameters, evaluated when read.

    So a merged graph exports like any other. Gives the number of layers. Raises PassError naming what stays.
    """
    report = apply_rewrites(graph, [MergeLora(), MergeLoraDropout()])
    left = [n for path in lora_params(graph) for n in graph.params[path].users if isinstance(n.op, Linear)]
    if left:
        lines = [f"{n!r} reads {n.value('w')!r}" for n in left] + [str(m) for m in report.misses]
        what = f"{len(left)} adapter layers are not in the form that add_lora gives"
        raise PassError(what, place=graph.name, details=lines, hint="merge before other passes change the graph")
    return sum(report.counts.values())
