"""Training a LoRA beside the frozen weights of a model: one kind of trained weights (see trained_weights.py)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ..frontends.dsl import Model
from ..ir.errors import ConfigError
from ..ir.init import Init
from ..ir.weights import Weights
from ..passes.encode import keep_encodings
from ..passes.freeze import encode_frozen, quantize_frozen
from ..passes.lora import UP, lora_params
from .adapters import Adapter, Lora, base_weights
from .checkpoint import Checkpoint
from .source import Source, plain_graph
from .trained_weights import Tuned, with_weights


class LoraWeights:
    """The A and B of a new adapter; a checkpoint and the folder of a run hold them in PEFT's format.

    Weights that are stored in blocks stay so. quantized: those of other linear layers are held in 8 bits. names: of
    the adapter's parameters.
    """

    def __init__(self, model: Model, source: Source, lora: Lora, *, quantized: bool = False) -> None:
        self.model, self.tokenizer, self.lora = model, source.tokenizer, lora
        self.graph = plain_graph(model, source)
        lora.insert(self.graph)
        self.names = frozenset(lora_params(self.graph))
        keep_encodings(self.graph, base_weights(model))
        self.quantized = quantize_frozen(self.graph) if quantized else {}

    def initial(self, seed: int) -> Weights:
        base = base_weights(self.model)
        drawn = Weights.initialize(self.graph, seed, Init("zeros"))
        return base | encode_frozen(self.quantized, base) | {k: drawn[k] for k in self.names}

    def trains(self, name: str) -> bool:
        return name in self.names

    def stores(self, name: str) -> bool:
        return name in self.names

    def stored(self, module: Weights, initial: Weights) -> Weights:
        return self._of_adapter(module)

    def notes(self) -> Mapping[str, str]:
        return {"lora": str(self.lora)}

    def tuned(self, weights: Weights) -> Tuned:
        adapter = self._adapter(weights)
        merged = base_weights(adapter.merged(self.model))
        return Tuned(with_weights(self.model, merged, self.tokenizer), adapter)

    def write(self, folder: Path, weights: Weights) -> None:
        self._adapter(weights).save(folder, self.model)

    def read(self, found: Checkpoint) -> Weights:
        if found.sharded:
            noted = found.state.get("lora", str(self.lora))
            if noted != str(self.lora):
                raise ConfigError(f"holds {noted}, not {self.lora}", place=str(found.folder))
            return found.weights()
        adapter = Adapter.load(found.folder)
        if adapter.lora != self.lora:
            raise ConfigError(f"holds {adapter.lora}, not {self.lora}", place=str(found.folder))
        return adapter.weights

    def publish(self, folder: Path, tuned: Tuned) -> None:
        assert tuned.adapter is not None
        tuned.adapter.save(folder, self.model)

    def published(self, folder: Path) -> Tuned:
        return self.tuned(Adapter.load(folder).weights)

    def switched_off(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        """Tensors in place of parameters of `module` with which it computes what it would without the adapter."""
        return {k: torch.zeros_like(module.get_parameter(k)) for k in self.names if k.endswith(f".{UP}")}

    def _adapter(self, weights: Weights) -> Adapter:
        return Adapter(self.lora, self._of_adapter(weights), str(self.model.folder or ""))

    def _of_adapter(self, weights: Weights) -> Weights:
        return Weights({k: weights[k] for k in sorted(self.names)})
