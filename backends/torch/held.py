"""What a forward pass holds in memory for its backward pass: measured, whatever it is that holds it."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from .untyped import storage_key


class Held(TorchDispatchMode):
    """Counts the memory that operations made and that is still held, whatever holds it."""

    def __init__(self) -> None:
        mode: Any = super()
        mode.__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in tree_iter(result):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                self.made[storage_key(t)] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def bytes(self, *given: torch.Tensor) -> int:
        gc.collect()
        known = {storage_key(t) for t in given}
        return sum(n for k, (ref, n) in self.made.items() if k not in known and not ref.expired())


def held_bytes(module: Any, inputs: Mapping[str, torch.Tensor]) -> tuple[int, torch.Tensor]:
    """(bytes that a loss holds for its backward pass beside parameters, buffers and inputs, the loss)."""
    with Held() as held:
        loss = module(**inputs)["loss"]
        return held.bytes(*module.parameters(), *module.buffers(), *inputs.values()), loss
