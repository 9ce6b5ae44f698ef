"""How checkpoints of a family are written: names and layouts, as Hugging Face and GGUF have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..ir.weights import Weights
from .buffers import Buffer


@dataclass(frozen=True)
class Checkpoint:
    """How Hugging Face checkpoints of a family, or of one of its heads, are stored.

    architecture: the name in `architectures` of config.json. also: other names that are read as this one. old: old
    ending of tensor names => new ending. prefix: what comes before the names of the base model in checkpoints of a
    model with a head. heads: parameters that belong to one task; models for another task ignore or reinitialize them.
    unused: tensors that may be present and are not needed, with the reason, or a function that checks that they follow
    from the config. tied: tensors of the output layer, which are not stored if it is tied, and the tensors that they
    equal. copies: other tensors that may be present, and those that they must equal. from_weights: keys of config.json
    that follow from whether a tensor of that pattern is present. layout: converts tensors that are stored in another
    form to that of the graph.
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
    """How a family is stored in GGUF.

    names: module name in GGUF => module name in the checkpoint. permuted: projections whose rows are stored in
    interleaved rotary order, with the config field that counts their heads. added: patterns of checkpoint names whose
    tensors are stored with a number added to them. unsaid: settings of config.json that follow from those that GGUF
    stores.
    """

    names: Mapping[str, str] = field(hash=False)
    permuted: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    added: Mapping[str, float] = field(default_factory=dict[str, float], hash=False)
    unsaid: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda settings: {}
