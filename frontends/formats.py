"""How checkpoints of a family are written: names and layouts, as Hugging Face and GGUF have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..ir.weights import Weights
from .buffers import Buffer


@dataclass(frozen=True)
class Checkpoint:
    """How the Hugging Face checkpoints of a family, or of one of its heads, are written.

    architecture: the name in `architectures` of config.json. also: other names that are read as this one. old: how
    names of tensors end in old files => how they end now. prefix: what checkpoints of a model with a head write before
    the names of the model inside it. heads: parameters that belong to one task: models for another leave them, or begin
    them anew. unused: tensors that may be there and are not needed, with the reason, or what says whether they follow
    from the config. tied: tensors of the output layer, which are not stored where it is tied, and the tensors that they
    equal. copies: others that may be there, and the tensors that they must equal. from_weights: keys of config.json
    that say whether there is a tensor of that pattern. layout: brings the other forms in which the tensors are stored
    into that of the graph.
    """

    architecture: str = ""
    also: tuple[str, ...] = ()
    old: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    prefix: str = ""
    heads: tuple[str, ...] = ()
    unused: Mapping[str, str | Buffer] = field(default_factory=dict[str, "str | Buffer"], hash=False)
    tied: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    copies: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    from_weights: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    layout: Callable[[Weights], Weights] | None = None


@dataclass(frozen=True)
class GGUF:
    """How a family is written in GGUF.

    names: module name there => checkpoint module name. permuted: projections whose rows are stored in interleaved
    rotary order, with the config field that counts their heads. added: patterns of checkpoint names whose tensors are
    stored with a number added to them. unsaid: settings of config.json that follow from those that GGUF stores.
    """

    names: Mapping[str, str] = field(hash=False)
    permuted: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    added: Mapping[str, float] = field(default_factory=dict[str, float], hash=False)
    unsaid: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda settings: {}
