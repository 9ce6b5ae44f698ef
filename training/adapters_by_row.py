"""Adapter files as what a build stores beside its base, to be chosen by row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..frontends.dsl import Model
from ..ir.errors import ConfigError
from ..passes.adapters import Adapters, LowRank
from ..passes.lora import DOWN, UP
from .adapters import Adapter
from .lora_merge import MAGNITUDE, changes_of, paths_of

_KINDS = {MAGNITUDE: "DoRA", "weight": "a whole weight", "bias": "a bias", "lora_B.bias": "a bias of B"}


def adapters_by_row(model: Model, given: Mapping[str, Any]) -> Adapters:
    """The adapters of a model by name, in order: folders of PEFT, or Adapters.

    Only A and B of linear layers can differ by row. Raises ConfigError naming the adapter and each layer that has
    more than that (DoRA, embeddings, biases, whole weights, rows of tokens), and WeightsError for tensors that do
    not fit the model.
    """
    layers: dict[str, dict[int, LowRank]] = {}
    for number, (name, source) in enumerate(given.items(), 1):
        if not name or not isinstance(source, (str, Path, Adapter)):
            raise ConfigError(f"adapter {name!r} is {type(source).__name__}, expected a name and a folder")
        adapter = source if isinstance(source, Adapter) else Adapter.load(source)
        _check(model, name, adapter)
        adapter.merged(model)  # Checks every tensor against the model; nothing is computed.
        changes, settings = changes_of(adapter.weights), adapter.settings
        for module, path in paths_of(model, changes).items():
            tensors = changes[module].tensors
            change = LowRank(tensors[DOWN], tensors[UP], settings.scale_of(module))
            layers.setdefault(path, {})[number] = change
    return Adapters(tuple(given), layers)


def _check(model: Model, name: str, adapter: Adapter) -> None:
    place, config = adapter.weights.place, adapter.config
    if config is not None and config.task is not None and config.task != str(model.task):
        raise ConfigError(f"adapter {name} is for {config.task}, but the model is for {model.task}", place=place)
    strange = [
        f"{change.module}: {_KINDS.get(kind, kind)}"
        for change in changes_of(adapter.weights).values()
        for kind in change.tensors
        if kind not in (DOWN, UP)
    ]
    if strange:
        what = f"adapter {name} is more than A and B of linear layers, so it cannot be chosen by row"
        raise ConfigError(what, place=place, details=strange, hint="merge it into the model and build that")
