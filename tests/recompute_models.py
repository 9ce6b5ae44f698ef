"""Small models with a loss and batches for them, and what is held in memory for their backward pass."""

from __future__ import annotations

import gc
from typing import Any

import torch
from monograph.frontends.dsl import load_family
from monograph.ir import Graph, Init, building, ops, tensor
from monograph.ir.types import DType, f32
from monograph.passes import pipelines
from monograph.training.loss import with_loss
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

VOCAB, ROWS, LENGTH = 61, 4, 24

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"dim": 32, "ffn": 80, "layers": 3, "heads": 4, "kv_heads": 2, "max_positions": LENGTH},
    "gpt2": {"dim": 32, "layers": 3, "heads": 4, "max_positions": LENGTH},
    "bert": {"dim": 32, "ffn": 96, "layers": 3, "heads": 4, "max_positions": LENGTH, "pooler": False},
    "transformer2017": {"dim": 32, "ffn": 96, "encoder_layers": 2, "decoder_layers": 2, "heads": 4},
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


class Held(TorchDispatchMode):
    """Counts the memory that operations made and that is still held, whatever holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_iter(result):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def bytes(self, *given: torch.Tensor) -> int:
        gc.collect()
        known = {t.untyped_storage()._cdata for t in given}
        return sum(n for k, (ref, n) in self.made.items() if k not in known and not ref.expired())


def held_bytes(module: Any, inputs: dict[str, torch.Tensor]) -> tuple[int, torch.Tensor]:
    """(bytes that a loss holds for its backward pass beside parameters, buffers and inputs, the loss)."""
    with Held() as held:
        loss = module(**inputs)["loss"]
        return held.bytes(*module.parameters(), *module.buffers(), *inputs.values()), loss
