"""What a graph and weights show of themselves: counts and first lines, not all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

from .display import Table, size, wrapped
from .encodings import Encoding
from .text import names_of, print_node
from .types import DimLike, TensorType

if TYPE_CHECKING:
    from .graph import Graph
    from .weights import Weights

_FIRST = 6
_NAMES = 8


def graph_table(graph: Graph) -> Table:
    """Inputs, outputs, parameters and slots of a graph, its ops by number, and its first nodes."""
    names, total = names_of(graph), len(graph)
    first = "\n".join(print_node(node, names) for node in islice(graph, _FIRST))
    rows = [
        ("inputs", wrapped([f"{k}: {v.type}" for k, v in graph.inputs.items()]) or "none"),
        ("outputs", wrapped([f"{k}: {v.type}" for k, v in graph.outputs.items()]) or "none"),
        ("parameters", parameters(v.type for v in graph.params.values())),
        *([("slots", wrapped([str(s).removeprefix("slot ") for s in graph.slots[:_NAMES]]))] if graph.slots else []),
        ("ops", wrapped([f"{op} {n}" for op, n in graph.counts().items()]) or "none"),
        *([("first nodes", first)] if first else []),
    ]
    note = f"str(graph) is the text of all {total} nodes" if total > _FIRST else ""
    return Table(f"graph {graph.name}: {counted(total, 'node')}", rows, note=note)


def weights_table(weights: Weights) -> Table:
    """How many tensors there are, how large, in which types, and the first names; nothing is read."""
    names = [f"{name}: {weights[name].type}" for name in islice(weights, _NAMES)]
    more = [f"... {len(weights) - _NAMES} more"] if len(weights) > _NAMES else []
    rows = [
        ("from", weights.place or "memory"),
        ("numbers", parameters(t.type for t in weights.values())),
        ("first" if more else "tensors", "\n".join([*names, *more]) or "none"),
    ]
    return Table(f"weights: {counted(len(weights), 'tensor')}", rows)


def parameters(types: Iterable[TensorType]) -> str:
    """How many numbers there are, in how many bytes, and in which types they are stored."""
    kinds: Counter[str] = Counter()
    numbers: DimLike = 0
    stored: DimLike = 0
    for t in types:
        kinds[_kind(t.dtype.value, t.encoding)] += 1
        numbers, stored = numbers + t.elements, stored + t.bytes
    if not kinds:
        return "none"
    shown = f"{numbers:,}" if isinstance(numbers, int) else str(numbers)
    memory = size(stored) if isinstance(stored, int) else f"{stored} bytes"
    in_types = ", ".join(f"{kind} {n}" for kind, n in kinds.most_common())
    return f"{shown} in {memory} ({counted(sum(kinds.values()), 'tensor')}: {in_types})"


def _kind(dtype: str, encoding: Encoding | None) -> str:
    return dtype if encoding is None else str(encoding)


def counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
