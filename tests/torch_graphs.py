"""A small transformer with everything the PyTorch backend must handle, and batches for it."""

from __future__ import annotations

from typing import Any

import torch
from monograph.ir import Graph, Init, building, interpret, ops, tensor
from monograph.ir.types import DType, f32, i64
from monograph.ir.weights import Weights

WIDTH, HEADS, VOCAB = 16, 2, 11


def block(graph: Graph, x: Any, mask: Any, path: str, dtype: DType, p: float) -> Any:
    """Pre-norm decoder block with fused residual norm, grouped-query attention, dropout and a gated MLP."""

    def weight(name: str, *shape: int) -> Any:
        return graph.param(f"{path}.{name}.weight", tensor(dtype, *shape), Init("normal", 0.2))

    normed = ops.rms_norm(x, graph.param(f"{path}.norm1.weight", tensor(dtype, WIDTH), Init("ones")))
    q = ops.linear(normed, weight("q_proj", WIDTH, WIDTH)).split_heads(HEADS)
    k = ops.linear(normed, weight("k_proj", WIDTH // 2, WIDTH)).split_heads(1)
    v = ops.linear(normed, weight("v_proj", WIDTH // 2, WIDTH)).split_heads(1)
    y = ops.linear(ops.attention(q, k, v, mask=mask, causal=True).merge_heads(), weight("o_proj", WIDTH, WIDTH))
    norm2 = graph.param(f"{path}.norm2.weight", tensor(dtype, WIDTH), Init("ones"))
    normed, x = ops.add_rms_norm(ops.dropout(y, p=p), x, norm2)
    up, down = weight("up_proj", 24, WIDTH), weight("down_proj", WIDTH, 24)
    return x + ops.gated_feed_forward(normed, weight("gate_proj", 24, WIDTH), up, down, activation="silu")


def small(dtype: DType = f32, masked: bool = True, p: float = 0.0, loss: bool = False) -> Graph:
    """Two blocks, tied embedding, constant position scales, optionally a loss."""
    graph = Graph("small")
    with building(graph):
        ids = graph.input("input_ids", tensor(i64, "B", "S"))
        mask = None
        if masked:
            given = graph.input("attention_mask", tensor(i64, "B", "S"))
            mask = given.cast(DType.bool_).reshape(*given.shape[:1], 1, 1, given.shape[1])
        table = graph.param("model.embed.weight", tensor(dtype, VOCAB, WIDTH), Init("normal", 0.5))
        scales = ops.constant(value=tuple(1.0 + i / 16 for i in range(WIDTH)), dtype=dtype)
        x = ops.embedding(ids, table) * scales
        for i in range(2):
            x = block(graph, x, mask, f"model.layers.{i}", dtype, p)
        logits = ops.linear(x, table)
        graph.output("logits", logits)
        if loss:
            graph.output("loss", ops.cross_entropy(logits, graph.input("labels", tensor(i64, "B", "S"))))
    return graph


def batch(rows: int, length: int, padding: str = "left") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 100 + length)
    mask = torch.ones(rows, length, dtype=torch.long)
    if padding == "left":
        mask[0, :2] = 0
    elif padding == "right":
        mask[0, -2:] = 0
    return {"input_ids": torch.randint(0, VOCAB, (rows, length), generator=generator), "attention_mask": mask}


def reference(graph: Graph, inputs: dict[str, torch.Tensor], seed: int = 0) -> dict[str, Any]:
    weights = Weights.initialize(graph, seed)
    return interpret(graph, {k: v.numpy() for k, v in inputs.items()}, weights.numpy)
