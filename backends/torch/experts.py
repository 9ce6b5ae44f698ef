"""Mixture of experts for PyTorch: each expert reads the tokens that chose it, and no others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ...ir import backward_reads as reads
from ...ir import ops
from ...ir.graph import Graph, Node, Value
from ...ir.op import Op
from ...ir.ops.experts import Moe
from ...ir.types import DimLike, TensorType, product
from .feed_forward import value
from .products import by_hand

if TYPE_CHECKING:
    from ...ir.layout import Layout


class ChosenExperts(Op):
    """As `moe`. A compiler sees every expert read every token, since how many chose one is no shape it can know."""

    autocast = True

    def backward_reads(self, node: Node, layout: Layout) -> reads.Saved:
        """What goes in, and for each use of an expert what its activation and its products keep."""
        x, weights = node.value("x"), node.value("weights")
        uses, hidden = layout.size(product(weights.shape)), layout.size(node.arguments[3].shape[0])
        width = layout.size(x.shape[-1])
        places = 2 * 8 * uses
        return reads.Saved(tuple(node.arguments), uses * (4 * hidden + 2 * width + 1) * x.dtype.bits // 8 + places)

    def infer(self, x: Value, weights: Value, indices: Value, *experts: Value, activation: str) -> TensorType:
        return x.type

    def body(self, x: Value, weights: Value, indices: Value, *experts: Value, activation: str) -> Value:
        return ops.moe(x, weights, indices, *experts, activation=activation)

    def flops(self, *operands: Value, activation: str) -> DimLike:
        return Moe().flops(*operands, activation=activation)

    def torch(self, torch: Any, x: Any, weights: Any, indices: Any, *experts: Any, activation: str) -> Any:
        given = (x, weights, indices, *experts)
        return x.tracer.create_proxy("call_function", chosen_experts, given, {"activation": activation})


CHOSEN = ChosenExperts()


def choose_experts(graph: Graph) -> None:
    """moe => chosen_experts."""
    for node in graph:
        if isinstance(node.op, Moe):
            with graph.at(node):
                made = graph.add(CHOSEN, node.operands, node.attributes)
            graph.replace(node.output, made[0])
            graph.erase(node)


def chosen_experts(
    x: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor, *experts: torch.Tensor, activation: str
) -> torch.Tensor:
    """x [..., C], weights and indices [..., k], three matrices an expert -> [..., C]."""
    triples = [(experts[i], experts[i + 1], experts[i + 2]) for i in range(0, len(experts), 3)]
    rows, each = x.reshape(-1, x.shape[-1]), weights.shape[-1]
    weights, flat = weights.reshape(-1, each), indices.reshape(-1)
    if x.is_meta or not by_hand(x, weights, indices, *experts):
        y = torch.zeros_like(rows)
        for i, triple in enumerate(triples):
            share = torch.where(indices.reshape(-1, each) == i, weights, 0.0).sum(-1, keepdim=True)
            y = y + _expert(rows, *triple, activation) * share
        return y.reshape(x.shape)
    # Uses by expert; the counts are the only numbers that a device is waited for. An expert that nobody chose reads no
    # row, so that its gradient is zero and not missing.
    order = torch.argsort(flat, stable=True)
    counts: list[int] = torch.bincount(flat, minlength=len(triples)).numpy(force=True).tolist()
    read = torch.split(rows[order.div(each, rounding_mode="floor")], counts)
    made = torch.cat([_expert(part, *triple, activation) for part, triple in zip(read, triples, strict=True)])
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    y = made[back].reshape(*weights.shape, -1) * weights.unsqueeze(-1)
    return y.sum(1).reshape(x.shape).to(x.dtype)


def _expert(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, activation: str) -> torch.Tensor:
    linear = torch.nn.functional.linear
    return linear(value(linear(x, gate), activation) * linear(x, up), down)
