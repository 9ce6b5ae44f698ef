"""What a GGUF file says about its model: the config, rotary positions, and that no other key matters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from ..ir.errors import ConfigError, did_you_mean
from ..ir.ops import rope_frequencies
from .dsl import Family
from .gguf_file import GGUFFile

_FACTS: dict[str, Callable[[Collection[str]], bool]] = {
    "tie_word_embeddings": lambda names: "output.weight" not in names,
    "attention_bias": lambda names: "blk.0.attn_q.bias" in names,
    "mlp_bias": lambda names: "blk.0.ffn_gate.bias" in names,
}
"""Config keys that GGUF does not store but that its tensors tell."""

ROPE_FACTORS = "rope_freqs.weight"

_ROPE = frozenset({"dimension_count", "freq_base", "scale_linear", "scaling.type", "scaling.factor"})
_YARN = frozenset({"scaling.original_context_length", "scaling.finetuned"})
_KNOWN = frozenset({"context_length", "vocab_size", "tensor_data_layout"})
"""Keys of an architecture that every file has and that say nothing that is not asked elsewhere: lengths that were
trained on, the size of the vocabulary, and how the tool that wrote the file calls its order of tensors."""


_USUAL = {"attention.causal": True}
"""Keys of an architecture with the value that they have where they are left out: any other one is a reason."""


def gguf_config(file: GGUFFile, family: Family, architecture: str) -> dict[str, Any]:
    """What config.json would say, from GGUF metadata and from which tensors there are."""
    fields = {f.metadata["hf"]: f.metadata["gguf"] for f in dataclasses.fields(family.config_class) if f.metadata}  # type: ignore[arg-type]
    found = {hf: file.metadata.get(f"{architecture}.{gguf}") for hf, gguf in fields.items() if gguf}
    settings = {k: _shortest(v) for k, v in found.items() if v is not None}
    table = file.tensors.get("token_embd.weight")
    if "vocab_size" in fields and table is not None and table.type.rank == 2:
        settings.setdefault("vocab_size", table.shape[0])
    settings |= {k: fact(file.tensors) for k, fact in _FACTS.items() if k in fields}
    return settings | dict(family.gguf.unsaid(settings) if family.gguf is not None else {})


def _shortest(value: Any) -> Any:
    """A number as it was written before GGUF stored it in 32 bits: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def with_rope_scaling(file: GGUFFile, architecture: str, config: Any) -> Any:
    """The config with what GGUF says about rotary positions. Raises ConfigError for what is not supported."""

    def get(name: str, default: Any = None) -> Any:
        return _shortest(file.metadata.get(f"{architecture}.rope.{name}", default))

    def positive(name: str) -> Any:
        number = get(name)
        if not isinstance(number, (int, float)) or not number > 0:
            raise ConfigError(f"has rope.{name} {number!r}, expected a positive number", place=str(file.path))
        return number

    if not hasattr(config, "rope_scaling"):
        return config
    if get("dimension_count", config.width) != config.width:
        what = f"rotates {get('dimension_count')} of {config.width} channels of a head, which is not supported"
        raise ConfigError(what, place=str(file.path))
    # As llama.cpp: positions are scaled where there is a factor, linearly unless a type is named; the first files
    # had it under another name.
    factor = next((k for k in ("scaling.factor", "scale_linear") if get(k)), "")
    kind = get("scaling.type", "linear" if factor else "none")
    if ROPE_FACTORS in file.tensors:
        scaling = _llama3_scaling(file, config.width, config.theta)
    elif kind == "none":
        return config
    elif kind in ("linear", "yarn"):
        scaling = {"rope_type": kind, "factor": positive(factor or "scaling.factor")}
    else:
        raise ConfigError(f"has rope scaling of type {kind!r}; linear and yarn are supported", place=str(file.path))
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = positive("scaling.original_context_length")
    return dataclasses.replace(config, rope_scaling=scaling)


def _llama3_scaling(file: GGUFFile, width: int, theta: float) -> dict[str, Any]:
    """GGUF stores one factor a frequency where Llama 3.1 has a rule: find the rule that gives these factors."""
    factors = file.tensors[ROPE_FACTORS].numpy()
    rule = {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain, scaled = (np.array(rope_frequencies(width, theta, s)[0]) for s in (None, rule))
    if factors.shape != plain.shape or not np.allclose(plain / scaled, factors, rtol=1e-4):
        raise ConfigError(f"has {ROPE_FACTORS} that do not follow the rule of Llama 3.1", place=str(file.path))
    return rule


def check_known(file: GGUFFile, family: Family, architecture: str, config: Any) -> None:
    """Refuse keys of the architecture that change what the model computes and are not read here, all by name.

    A key whose value is 0, false or empty switches something off, so it is no reason. Raises ConfigError.
    """
    fields = {f.metadata.get("gguf") for f in dataclasses.fields(family.config_class)}  # type: ignore[arg-type]
    rope = {f"rope.{k}" for k in _ROPE | _YARN} if hasattr(config, "rope_scaling") else set[str]()
    known = {k for k in fields if k} | rope | _KNOWN
    prefix = f"{architecture}."
    given = {k.removeprefix(prefix): v for k, v in file.metadata.items() if k.startswith(prefix)}
    width = getattr(config, "width", None)
    same = {"attention.value_length": width, "attention.key_length": width}
    usual = {k: _USUAL[k] if k in _USUAL else same.get(k) for k in given}
    strange = [k for k, v in given.items() if k not in known and v != usual[k] and (v or k in _USUAL)]
    if strange:
        lines = [f"{prefix}{k} = {str(given[k])[:60]}{did_you_mean(k, known)}" for k in strange]
        raise ConfigError(f"has {len(strange)} keys that are not understood", place=str(file.path), details=lines)
