"""Ops of a graph that is one rank's share of a larger one: what a tensor-parallel group does together.

`copy_to_ranks` and `sum_over_ranks` are f and g of Megatron-LM (Shoeybi et al. 2019). Only `passes/shard_apply.py`
makes them; no other part of the compiler needs to know them. `group` is the name of a torch.distributed process group.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from ..ir.backward_reads import Saved, nothing
from ..ir.errors import PassError, check
from ..ir.graph import Node, Value
from ..ir.layout import Layout
from ..ir.op import Op, unmoved
from ..ir.ops.checks import floating
from ..ir.shard_rules import needs_all
from ..ir.types import DimLike, TensorType
from ..ir.value import Attributes


def _alone(x: Any) -> Any:
    raise PassError("sum_over_ranks needs the other ranks: the graph is one rank's share")


ADD: ContextVar[Callable[[Any], Any]] = ContextVar("monograph_add", default=_alone)
"""How the NumPy reference adds an array over the ranks; whoever interprets all ranks side by side sets it."""


class CopyToRanks(Op):
    """x, read by every rank of `group` for its own part of a layer: the gradients of the ranks are added."""

    backward_reads = nothing
    flops = unmoved
    shard = needs_all

    def infer(self, x: Value, *, group: str = "") -> TensorType:
        floating(x=x)
        return x.type

    def numpy(self, x: Any, *, group: str) -> Any:
        return x

    def torch(self, torch: Any, x: Any, *, group: str) -> Any:
        return torch.ops.monograph.copy_to_ranks(x, group)


class SumOverRanks(Op):
    """The sum of x over the ranks of `group`; the gradient of every summand is that of the sum."""

    backward_reads = nothing
    flops = unmoved
    shard = needs_all

    def infer(self, x: Value, *, group: str = "") -> TensorType:
        floating(x=x)
        return x.type

    def numpy(self, x: Any, *, group: str) -> Any:
        return ADD.get()(x)

    def torch(self, torch: Any, x: Any, *, group: str) -> Any:
        return torch.ops.monograph.sum_over_ranks(x, group)


class PartOfDropout(Op):
    """Part `rank` of `size` along `axis` of what dropout gives for the whole tensor, with the same random numbers.

    The mask is drawn whole on every rank: equal seeds give the numbers of one process, at the cost of its memory.
    """

    random = True
    shard = needs_all

    def infer(self, x: Value, *, p: float, axis: int, rank: int, size: int) -> TensorType:
        floating(x=x)
        check(axis < 0 <= rank < size, f"part {rank} of {size} along axis {axis}")
        return x.type

    def numpy(self, x: Any, *, p: float, axis: int, rank: int, size: int) -> Any:
        return x

    def torch(self, torch: Any, x: Any, *, p: float, axis: int, rank: int, size: int, training: Any) -> Any:
        ones = torch.cat((torch.ones_like(x),) * size, dim=axis)
        mask = torch.nn.functional.dropout(ones, p, training)
        return x * torch.chunk(mask, size, dim=axis)[rank]

    def flops(self, x: Value, *, p: float, axis: int, rank: int, size: int) -> DimLike:
        return 2 * x.type.elements

    def backward_reads(self, node: Node, layout: Layout) -> Saved:
        """Its part of the mask, scaled, in the width of x."""
        return Saved((), layout.bytes(node.value("x").type))


COPY, SUM, DROPOUT = CopyToRanks(), SumOverRanks(), PartOfDropout()


def add(op: Op, x: Value, attributes: Attributes | None = None) -> Value:
    """Append one of these ops to the graph of x."""
    return x.graph.add(op, (x,), attributes or {})[0]
