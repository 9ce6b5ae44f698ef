"""Small models with a loss, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from monograph.frontends.dsl import load_family
from monograph.ir import Graph, Init, building, ops, tensor
from monograph.ir.types import DType, f32
from monograph.passes import pipelines
from monograph.training.loss import with_loss

VOCAB, ROWS, LENGTH = 61, 4, 24

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"dim": 32, "ffn": 80, "layers": 3, "heads": 4, "kv_heads": 2, "max_positions": LENGTH},
    "gpt2": {"dim": 32, "layers": 3, "heads": 4, "max_positions": LENGTH},
    "bert": {"dim": 32, "ffn": 96, "layers": 3, "heads": 4, "max_positions": LENGTH, "pooler": False},
    "transformer2017": {"dim": 32, "ffn": 96, "layers": 2, "decoder_layers": 2, "heads": 4},
}


def training_graph(family: str, dtype: DType = f32, **changes: Any) -> Graph:
    """The graph of a small model with output `loss`, after the passes that training runs."""
    graph = load_family(family)(vocab=VOCAB, **{**CONFIGS[family], **changes}).graph(dtype)
    if "logits" not in graph.outputs:
        with building(graph):
            x = graph.outputs.pop("last_hidden_state")
            head = graph.param("head.weight", tensor(dtype, VOCAB, x.shape[-1]), Init("normal", 0.02))
            graph.output("logits", ops.gelu(ops.linear(x, head)))
    return pipelines.train(with_loss(graph))


def sizes_of(graph: Graph) -> dict[str, int]:
    names = {s for v in graph.inputs.values() for s in v.type.symbols}
    return {s: ROWS if s == "B" else LENGTH for s in names}


def batch(graph: Graph) -> dict[str, torch.Tensor]:
    """Random ids, every mask with padding, positions counted up."""
    generator, sizes, result = torch.Generator().manual_seed(3), sizes_of(graph), {}
    for name, v in graph.inputs.items():
        shape = [sizes[str(d)] for d in v.shape]
        if "mask" in name:
            result[name] = torch.ones(shape, dtype=torch.long)
            result[name][1, -5:] = 0
        elif name == "position_ids":
            result[name] = torch.arange(shape[1]).expand(shape).contiguous()
        else:
            high = 2 if name == "token_type_ids" else VOCAB
            result[name] = torch.randint(0, high, shape, generator=generator)
    return result
