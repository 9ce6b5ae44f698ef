"""Adapters: what a LoRA is, files in PEFT's format both ways, and a model with an adapter beside or merged into it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..frontends.dsl import Model
from ..frontends.entries import Note
from ..frontends.tokenizer import read_json
from ..ir.display import Shown, Table, size
from ..ir.errors import ConfigError, WeightsError
from ..ir.files import Stage, staged
from ..ir.graph import Graph
from ..ir.safetensors import write_file
from ..ir.weights import Weights
from ..passes.lora import ALL as ALL
from ..passes.lora import DOWN, UP, add_lora, select
from .lora_merge import changes_of, clean_name, merged
from .peft_config import TASKS, PeftConfig, read_config

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter: A [rank, in] and B [out, rank] beside each layer that `targets` names (see passes/lora.py).

    rank_stabilized: the scale is alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023).
    """

    rank: int = 8
    alpha: float = 16.0
    targets: str | tuple[str, ...] = ALL
    dropout: float = 0.0
    rank_stabilized: bool = False

    @property
    def scale(self) -> float:
        """The factor of the adapter's output: alpha / rank, or alpha / sqrt(rank) if `rank_stabilized`."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def insert(self, graph: Graph) -> int:
        """Put the adapter into a plain graph; gives the number of layers. Raises PassError."""
        alpha = self.alpha * math.sqrt(max(self.rank, 0)) if self.rank_stabilized else self.alpha
        return add_lora(graph, self.rank, alpha, self.targets, self.dropout)


@dataclass(frozen=True, repr=False)
class Adapter(Shown):
    """A LoRA with its weights, by the graph's names. base: name of the model it was trained on, as PEFT notes it.

    config: what adapter_config.json said, if it was read from files of PEFT.
    """

    lora: Lora
    weights: Weights
    base: str = ""
    config: PeftConfig | None = None

    @property
    def notes(self) -> tuple[Note, ...]:
        """What the configuration says that changes nothing here."""
        return self.config.notes if self.config is not None else ()

    def said(self) -> str:
        """In a few words."""
        stored = sum(t.bytes for t in self.weights.values())
        return (
            f"a LoRA of rank {self.lora.rank}, alpha {self.lora.alpha:g}: {len(self.weights)} tensors, {size(stored)}"
        )

    def table(self) -> Table:
        """What it is, for `repr` and notebooks."""
        return Table("adapter", [("kind", self.said()), ("of", self.base or "a model without a name")])

    def beside(self, model: Model) -> tuple[Graph, Weights]:
        """The plain graph of `model` with the adapter in it, and the weights of both.

        Raises ConfigError for an adapter that is more than A and B of one rank and alpha, and WeightsError listing
        every tensor that does not fit.
        """
        strange = [k for k in self.weights if not k.endswith((f".{DOWN}", f".{UP}"))]
        if strange or (self.config is not None and (self.config.ranks or self.config.alphas)):
            what = "is more than A and B of one rank and alpha, so it cannot stand beside the weights"
            raise ConfigError(what, place=self.weights.place, details=strange, hint="merge it into the model")
        base = base_weights(model)
        merged(model, self.weights, self.settings)
        graph = model.graph()
        targets = tuple(dict.fromkeys(k.rpartition(".lora_")[0] for k in self.weights))
        replace(self.lora, targets=targets).insert(graph)
        return graph, base | self.weights

    def merged(self, model: Model) -> Model:
        """The model with the adapter in its weights: w + scale * B @ A, computed when a weight is read.

        Raises WeightsError listing every tensor that does not fit.
        """
        return merged(model, self.weights, self.settings)

    @property
    def settings(self) -> PeftConfig:
        """Rank, alpha and what else adapter_config.json says, or would say."""
        lora = self.lora
        return self.config or PeftConfig(
            lora.rank, lora.alpha, lora.targets, lora.dropout, lora.rank_stabilized, self.base
        )

    def save(self, folder: str | Path, model: Model) -> None:
        """Write adapter_config.json and adapter_model.safetensors as PEFT does, whole or not at all."""
        with staged(folder) as stage:
            self.write(stage, model)

    def write(self, stage: Stage, model: Model, metadata: Mapping[str, str] | None = None) -> None:
        """`save` as a part of files that appear together."""
        tensors = {_PREFIX + k: t for k, t in self.weights.items()}
        with stage.open(CONFIG) as f:
            f.write((json.dumps(peft_config(self, model), indent=2, sort_keys=True) + "\n").encode())
        with stage.open(TENSORS) as f:
            write_file(f, tensors, {"format": "pt", **(metadata or {})})

    @staticmethod
    def load(folder: str | Path) -> Adapter:
        """Read what PEFT or `save` wrote; tensors are read when asked for.

        Raises ConfigError naming the options that are not supported, and WeightsError for damaged or strange tensors.
        """
        folder = Path(folder)
        place = folder / CONFIG
        settings = read_json(place)
        if not settings:
            raise ConfigError(f"has no {CONFIG}" if not place.exists() else "is empty", place=str(folder))
        config = read_config(settings, str(place))
        if not (folder / TENSORS).exists():
            pickles = [p.name for p in sorted(folder.glob("*.bin"))]
            hint = f"{pickles[0]} is a pickle, which is never read" if pickles else ""
            raise WeightsError(f"has no {TENSORS}", place=str(folder), hint=hint)
        weights = Weights.open(folder / TENSORS).renamed(clean_name)
        changes_of(weights)
        lora = Lora(config.rank, config.alpha, config.targets, config.dropout, config.rank_stabilized)
        return Adapter(lora, weights, config.base, config)


def base_weights(model: Model) -> Weights:
    """The weights of a model. Raises WeightsError when it has none to adapt."""
    if model.weights is None:
        raise WeightsError(f"model {model.name} has no weights to fine-tune", hint="load a checkpoint")
    return model.weights


def peft_config(adapter: Adapter, model: Model) -> dict[str, Any]:
    """adapter_config.json of an adapter for `model`."""
    lora = adapter.lora
    chosen = select(model.graph(), lora.targets)
    transposed = {node.attributes["transposed"] for nodes in chosen.values() for node in nodes}
    return {
        "peft_type": "LORA",
        "task_type": TASKS.get(str(model.task)),
        "base_model_name_or_path": adapter.base or (str(model.folder) if model.folder else None),
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        "use_rslora": lora.rank_stabilized,
        "fan_in_fan_out": transposed == {True},
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
