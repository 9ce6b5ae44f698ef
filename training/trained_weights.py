"""Which weights of a model are trained, what a checkpoint holds of them, and which model they make: all of them here.

The other kind is a LoRA beside frozen weights, in training/lora.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ..frontends.dsl import Model
from ..frontends.huggingface import save_pretrained
from ..frontends.tokenizer import Tokenizer
from ..ir.display import Shown, Table
from ..ir.graph import Graph
from ..ir.weights import SINGLE, Weights
from .adapters import Adapter
from .checkpoint import Checkpoint
from .source import Source, plain_graph

_ONE_FILE = 1 << 62


@dataclass(frozen=True, repr=False)
class Tuned(Shown):
    """A trained model; with a LoRA also the adapter, which is merged in `model` (computed when weights are read)."""

    model: Model
    adapter: Adapter | None = None

    def table(self) -> Table:
        """What was trained, for `repr` and notebooks."""
        kind = "all weights" if self.adapter is None else self.adapter.said()
        return Table("tuned", [("model", f"{self.model.name}, {self.model.task}"), ("trained", kind)])


class TrainedWeights(Protocol):
    """One kind of training weights. graph: what learns, up to its logits, without a loss."""

    @property
    def graph(self) -> Graph: ...

    def initial(self, seed: int) -> Weights:
        """The weights before the first step, of every parameter of `graph`."""
        ...

    def trains(self, name: str) -> bool:
        """Whether a parameter gets a gradient; the others stay as they are."""
        ...

    def stores(self, name: str) -> bool:
        """Whether a parameter belongs to a checkpoint."""
        ...

    def stored(self, module: Weights, initial: Weights) -> Weights:
        """Those of a checkpoint, from what the module holds now and what it began with."""
        ...

    def notes(self) -> Mapping[str, str]:
        """What state.json of a checkpoint says about this kind."""
        ...

    def tuned(self, weights: Weights) -> Tuned:
        """The model that these weights make, with the tokenizer they were trained with."""
        ...

    def write(self, folder: Path, weights: Weights) -> None:
        """Write the weights as a folder that loads like any other of their kind."""
        ...

    def read(self, found: Checkpoint) -> Weights:
        """The weights of a checkpoint. Raises ConfigError if it holds another kind."""
        ...

    def publish(self, folder: Path, tuned: Tuned) -> None:
        """Write what a run gives into its folder."""
        ...

    def published(self, folder: Path) -> Tuned:
        """What `publish` wrote, read from there."""
        ...


class FullWeights:
    """All weights of a model: those it has, or new ones drawn by the seed."""

    def __init__(self, model: Model, source: Source) -> None:
        self.model, self.tokenizer = model, source.tokenizer
        self.graph = plain_graph(model, source)

    def initial(self, seed: int) -> Weights:
        return self.model.weights or Weights.initialize(self.graph, seed)

    def trains(self, name: str) -> bool:
        return True

    def stores(self, name: str) -> bool:
        return True

    def stored(self, module: Weights, initial: Weights) -> Weights:
        # A parameter that nothing reads is not in the module but belongs to the checkpoint.
        return Weights({k: module.get(k, t) for k, t in initial.items()})

    def notes(self) -> Mapping[str, str]:
        return {}

    def tuned(self, weights: Weights) -> Tuned:
        return Tuned(with_weights(self.model, weights, self.tokenizer))

    def write(self, folder: Path, weights: Weights) -> None:
        self.publish(folder, self.tuned(weights))

    def read(self, found: Checkpoint) -> Weights:
        return found.weights()

    def publish(self, folder: Path, tuned: Tuned) -> None:
        save_pretrained(tuned.model, folder, max_shard_bytes=_ONE_FILE)

    def published(self, folder: Path) -> Tuned:
        return Tuned(replace(self.tuned(Weights.open(folder / SINGLE)).model, folder=folder))


def with_weights(model: Model, weights: Weights, tokenizer: Tokenizer | None) -> Model:
    """A model with other weights and the tokenizer they were trained with, at whose end tokens it stops."""
    if tokenizer is None:
        return replace(model, weights=weights)
    ends = {"eos_token_id": list(tokenizer.eos_ids)} if tokenizer.eos_ids else {}
    return replace(model, weights=weights, tokenizer=tokenizer, generation={**model.generation, **ends})
