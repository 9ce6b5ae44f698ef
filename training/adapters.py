"""Adapters: what a LoRA is, files in PEFT's format both ways, and a model with an adapter beside or merged into it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ..frontends.dsl import Model
from ..frontends.tokenizer import read_json
from ..ir.errors import ConfigError, WeightsError, did_you_mean
from ..ir.files import Stage, staged
from ..ir.graph import Graph
from ..ir.safetensors import write_file
from ..ir.tensors import Tensor
from ..ir.weights import Computed, Weights
from ..passes.lora import ALL as ALL
from ..passes.lora import DOWN, UP, add_lora, lora_params, merge_lora, select

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TASKS = {
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "feature-extraction": "FEATURE_EXTRACTION",
}
_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to start A and B that leave the base weights alone; after others an adapter fits changed weights only."""
_READ = frozenset(
    {"peft_type", "r", "lora_alpha", "target_modules", "lora_dropout", "use_rslora", "bias", "init_lora_weights"}
)
_GENERAL = frozenset(
    {"auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "fan_in_fan_out",
     "peft_version", "runtime_config", "megatron_core", "qalora_group_size", "eva_config", "corda_config",
     "loftq_config", "lora_ga_config"}
)  # fmt: skip
"""Options that say where an adapter comes from or how it was started, not what it computes; how a base layer stores
its weight (fan_in_fan_out) is known from the graph."""


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
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    def insert(self, graph: Graph) -> int:
        """Put the adapter into a plain graph; gives the number of layers. Raises PassError."""
        alpha = self.alpha * math.sqrt(max(self.rank, 0)) if self.rank_stabilized else self.alpha
        return add_lora(graph, self.rank, alpha, self.targets, self.dropout)


@dataclass(frozen=True)
class Adapter:
    """A LoRA with its weights, by the graph's names. base: name of the model it was trained on, as PEFT notes it."""

    lora: Lora
    weights: Weights
    base: str = ""

    def beside(self, model: Model) -> tuple[Graph, Weights]:
        """The plain graph of `model` with the adapter in it, and the weights of both.

        Raises PassError if the model has no such layers, and WeightsError listing every tensor that does not fit.
        """
        graph = model.graph()
        self.lora.insert(graph)
        wanted = {path: graph.params[path].type for path in lora_params(graph)}
        lines = [f"missing: {k}: {t}" for k, t in wanted.items() if k not in self.weights]
        for k, tensor in self.weights.items():
            if k not in wanted:
                lines.append(f"unexpected: {k}: {tensor.type}{did_you_mean(k, wanted)}")
            elif tensor.shape != wanted[k].shape:
                lines.append(f"wrong: {k} is {tensor.type}, expected {wanted[k]}")
        if lines:
            what = f"the adapter does not fit {model.name}: {len(lines)} differences"
            raise WeightsError(what, place=self.weights.place, details=lines)
        return graph, base_weights(model) | self.weights

    def merged(self, model: Model) -> Model:
        """The model with the adapter in its weights: w + scale * B @ A, computed when a weight is read."""
        graph, weights = self.beside(model)
        adapted = list(select(model.graph(), self.lora.targets))
        merge_lora(graph)
        changed: dict[str, Tensor] = {}
        for path in (f"{m}.weight" for m in adapted):
            # Only linear layers read it, so now only the sums do, and all of them are the same.
            merged = graph.params[path].users[0].output
            changed[path] = Computed(merged, weights).cast(weights[path].dtype)
        return replace(model, weights=base_weights(model) | changed)

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
            write_file(f, tensors, {"format": "pt", **(metadata or {})}, lambda name, size: None)

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
        lora = _lora(settings, str(place))
        if not (folder / TENSORS).exists():
            pickles = [p.name for p in sorted(folder.glob("*.bin"))]
            hint = f"{pickles[0]} is a pickle, which is never read" if pickles else ""
            raise WeightsError(f"has no {TENSORS}", place=str(folder), hint=hint)
        stored = Weights.open(folder / TENSORS)
        strange = [k for k in stored if not (k.startswith(_PREFIX) and k.endswith((f".{DOWN}", f".{UP}")))]
        if strange:
            what = f"{len(strange)} tensors are not A or B of a LoRA"
            raise WeightsError(what, place=str(folder / TENSORS), details=strange)
        weights = stored.renamed(lambda k: k.removeprefix(_PREFIX))
        return Adapter(lora, weights, str(settings.get("base_model_name_or_path") or ""))


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
        "task_type": _TASKS.get(str(model.task)),
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


def _lora(settings: Mapping[str, Any], place: str) -> Lora:
    """The adapter that a PEFT configuration describes. Raises ConfigError listing all that is not understood."""
    problems = [f"{k} = {v!r} is not supported" for k, v in settings.items() if _matters(k, v)]
    if settings.get("peft_type") != "LORA":
        problems.append(f"peft_type is {settings.get('peft_type')!r}, expected 'LORA'")
    if settings.get("bias", "none") != "none":
        problems.append(f"bias is {settings['bias']!r}, expected 'none'")
    if settings.get("init_lora_weights", True) not in _STARTS:
        problems.append(f"init_lora_weights is {settings['init_lora_weights']!r}, which changes the base weights")
    rank, alpha, dropout = (settings.get(k, d) for k, d in (("r", 8), ("lora_alpha", 8), ("lora_dropout", 0.0)))
    targets = settings.get("target_modules")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        problems.append(f"r is {rank!r}, expected an integer from 1")
    if not _is_number(alpha):
        problems.append(f"lora_alpha is {alpha!r}, expected a number")
    if not _is_number(dropout) or not 0 <= dropout < 1:
        problems.append(f"lora_dropout is {dropout!r}, expected a number from 0 to less than 1")
    listed = cast(list[Any], targets) if isinstance(targets, list) else []
    named = bool(listed) and all(isinstance(t, str) for t in listed)
    if not targets or not (named or isinstance(targets, str)):
        problems.append(f"target_modules is {targets!r}, expected names or a pattern")
    if problems:
        raise ConfigError("is not an adapter that is understood", place=place, details=problems)
    given = targets if isinstance(targets, str) else tuple(listed)
    return Lora(rank, float(alpha), given, float(dropout), bool(settings.get("use_rslora")))


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def _matters(name: str, value: Any) -> bool:
    """Whether an option changes what is computed in a way that is not known here. Unset ones do not."""
    return name not in _READ | _GENERAL and value not in (None, False, [], {}, "")
