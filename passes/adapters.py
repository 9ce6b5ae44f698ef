"""Several low-rank adapters over one base, chosen by row of the batch: packed projections stay one product.

Beside a linear layer y = linear(x, w) stands + (x @ A[a]) @ B[a], where A [N+1,in,R] and B [N+1,R,out] hold all
adapters one above the other, and a i64 [B] is the input `adapter`: 0 for none, whose A and B are zeros. Lower ranks
are filled with zeros, scales are multiplied into B. Of a packed projection the ranks of its parts stand side by side
in A, and their B are blocks along the diagonal, so that the adapters of all parts are two small products.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..ir.errors import PassError
from ..ir.graph import Graph, Node, Value
from ..ir.ops import gather, linear, matmul
from ..ir.ops.linear import Linear
from ..ir.ops.shape import Concat
from ..ir.tensors import Array, Tensor, convert
from ..ir.types import DType, TensorType, i64
from .encode import stored_weight
from .pattern import Report

ADAPTER = "adapter"
"""Input i64 [B]: the number of the adapter of each row; 0 for none."""


@dataclass(frozen=True)
class LowRank:
    """What one adapter adds to one layer: scale * up @ down, with down [rank,in] and up [out,rank]."""

    down: Tensor
    up: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True)
class Adapters:
    """Adapters by name, which are numbered from 1 on. layers: by path of a layer, what adapters of a number add."""

    names: tuple[str, ...]
    layers: Mapping[str, Mapping[int, LowRank]]


@dataclass(frozen=True)
class Part:
    """One layer of a product that may be packed. start, width: its place among the outputs."""

    module: str
    start: int
    width: int


@dataclass(eq=False)
class AddAdapters:
    """Put the adapters beside every layer that they change. weights: the new parameters. found: layers that were."""

    adapters: Adapters
    weights: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    found: set[str] = field(default_factory=set[str])
    name: str = "add_adapters"

    def run(self, graph: Graph) -> Report:
        """Raises PassError for a layer whose rows are not those of the batch."""
        layers = [(n, parts) for n in graph if (parts := self._parts(n))]
        batches = {n.value("x").shape[0] for n, _ in layers}
        if not layers:
            return Report({self.name: 0})
        flat = [p.module for n, parts in layers for p in parts if n.value("x").rank != 3]
        if flat or len(batches) > 1:
            what = "adapters by row need layers over [batch, tokens, channels]"
            raise PassError(what, place=graph.name, details=[*flat, *map(str, batches if len(batches) > 1 else ())])
        with graph.at(None, layers[0][0].location):
            chosen = graph.input(ADAPTER, TensorType(i64, (batches.pop(),)))
        for node, parts in layers:
            self._beside(graph, node, parts, chosen)
        return Report({self.name: len(layers)})

    def check(self, name: str) -> None:
        """Raises PassError naming every layer that no graph has."""
        lost = sorted(self.adapters.layers.keys() - self.found)
        if lost:
            raise PassError(f"{len(lost)} adapted layers of {name} are not in its graphs", details=lost)

    def _parts(self, node: Node) -> list[Part]:
        """The layers in a product, if any of them is adapted."""
        if not isinstance(node.op, Linear):
            return []
        w, axis = node.value("w"), -1 if node.attributes["transposed"] else 0
        packed = w.producer is not None and isinstance(w.producer.op, Concat)
        parts: list[Part] = []
        start = 0
        for v in w.producer.arguments if packed and w.producer is not None else (w,):
            stored, width = stored_weight(v), v.shape[axis]
            assert isinstance(width, int), f"{v!r} has no fixed width"
            parts.append(Part("" if stored is None else stored.name.removesuffix(".weight"), start, width))
            start += width
        return parts if any(p.module in self.adapters.layers for p in parts) else []

    def _beside(self, graph: Graph, node: Node, parts: list[Part], chosen: Value) -> None:
        adapted = [p for p in parts if p.module in self.adapters.layers]
        self.found |= {p.module for p in adapted}
        x, y = node.value("x"), node.output
        columns, rows = x.shape[-1], y.shape[-1]
        assert isinstance(columns, int) and isinstance(rows, int), f"{node!r} has no fixed widths"
        stack = Stack(self.adapters, tuple(adapted), columns, rows, x.dtype)
        base = f"{adapted[0].module}.{f'{len(adapted)}.' if len(adapted) > 1 else ''}adapters"
        params: list[Value] = []
        for tensor in (Down(stack), Up(stack)):
            params.append(graph.param(f"{base}.{tensor.kind}", tensor.type))
            self.weights.setdefault(f"{base}.{tensor.kind}", tensor)
        with graph.at(node):
            y = linear(x, node.value("w"), node["b"], transposed=node.attributes["transposed"])
            down, up = (gather(p, chosen, axis=0) for p in params)
            changed = y + matmul(matmul(x, down), up)
        graph.replace(node.output, changed)
        graph.erase(node)


@dataclass(frozen=True)
class Stack:
    """What all adapters add to the parts of one product [.., columns] -> [.., rows]."""

    adapters: Adapters
    parts: tuple[Part, ...]
    columns: int
    rows: int
    dtype: DType

    @property
    def ranks(self) -> list[int]:
        """The highest rank of any adapter, by part."""
        return [max(a.rank for a in self.adapters.layers[p.module].values()) for p in self.parts]

    @property
    def count(self) -> int:
        return len(self.adapters.names) + 1

    def changes(self) -> Iterator[tuple[int, Part, slice, LowRank]]:
        """(number of the adapter, part, its ranks in the stack, what is added) of all that are not zeros."""
        start = 0
        for part, rank in zip(self.parts, self.ranks, strict=True):
            for number, change in self.adapters.layers[part.module].items():
                yield number, part, slice(start, start + change.rank), change
            start += rank


class Down(Tensor):
    """A of a stack, [N+1,columns,R]."""

    kind = "down"

    def __init__(self, stack: Stack) -> None:
        self.stack, self.type = stack, TensorType(stack.dtype, (stack.count, stack.columns, sum(stack.ranks)))

    def numpy(self) -> Array:
        found = np.zeros(self.shape, np.float32)
        for number, _, ranks, change in self.stack.changes():
            found[number, :, ranks] = change.down.numpy().astype(np.float32).T
        return convert(found, self.dtype)


class Up(Tensor):
    """B of a stack with the scales in it, [N+1,R,rows]."""

    kind = "up"

    def __init__(self, stack: Stack) -> None:
        self.stack, self.type = stack, TensorType(stack.dtype, (stack.count, sum(stack.ranks), stack.rows))

    def numpy(self) -> Array:
        found = np.zeros(self.shape, np.float32)
        for number, part, ranks, change in self.stack.changes():
            found[number, ranks, part.start : part.start + part.width] = (
                change.up.numpy().astype(np.float32).T * change.scale
            )
        return convert(found, self.dtype)
