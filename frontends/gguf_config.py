"""What a GGUF file says about its model: the config, rotary positions, and that no other key matters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from ..ir.errors import ConfigError, did_you_mean
from ..ir.ops import rope_frequencies
from .dsl import Family
from .entries import Entries, Note
from .gguf_file import GGUFFile

_FACTS: dict[str, Callable[[Collection[str]], bool]] = {
    "tie_word_embeddings": lambda names: "output.weight" not in names,
    "attention_bias": lambda names: "blk.0.attn_q.bias" in names,
    "mlp_bias": lambda names: "blk.0.ffn_gate.bias" in names,
}
"""Config keys that GGUF does not store but that its tensors tell."""

ROPE_FACTORS = "rope_freqs.weight"

_NEEDED = ("context_length", "embedding_length", "block_count", "attention.layer_norm_rms_epsilon")
"""Keys without which llama.cpp does not read a file of the architectures that are read here."""
_ROPE = ("dimension_count", "freq_base", "freq_base_swa", "scale_linear", "scaling.type", "scaling.factor")
_YARN = ("scaling.original_context_length",)
_USUAL: dict[str, Any] = {
    "attention.causal": True,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
}
"""Keys of an architecture with the value that llama.cpp takes where they are left out, and that is computed here."""
_NOTED = {
    "vocab_size": "the table of embeddings says it",
    "tensor_data_layout": "it is what the tool that wrote the file calls its order of rows",
    "rope.scaling.finetuned": "it says how the model was trained",
}
_GENERAL = {
    "general.file_type": "each tensor says its own type",
    "general.quantization_version": "each tensor says its own type",
    "general.sampling.": "a setting of sampling, which is given where text is made",
    "general.": "it says what the model is called or where it comes from",
    "quantize.": "it says how the file was made",
    "split.": "the parts of a file are found by their names",
}
"""Beginnings of keys of no architecture, the longest first, with the reason why they change nothing."""
_READ = ("general.architecture", "general.alignment", "general.type")


def gguf_config(file: GGUFFile, family: Family, architecture: str) -> dict[str, Any]:
    """What config.json would say, from GGUF metadata and from which tensors there are."""
    fields = {f.metadata["hf"]: f.metadata["gguf"] for f in dataclasses.fields(family.config_class) if f.metadata}  # type: ignore[arg-type]
    found = {hf: file.metadata.get(f"{architecture}.{gguf}") for hf, gguf in fields.items() if gguf}
    settings = {k: _shortest(v) for k, v in found.items() if v is not None}
    lost = [
        f"{architecture}.{k}" for k in _NEEDED if k in fields.values() and f"{architecture}.{k}" not in file.metadata
    ]
    if lost:
        raise ConfigError(f"does not say {', '.join(lost)}", place=str(file.path))
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
        length = "scaling.original_context_length"
        scaling["original_max_position_embeddings"] = config.max_positions if get(length) is None else positive(length)
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


def account(file: GGUFFile, family: Family, architecture: str, config: Any) -> tuple[Note, ...]:
    """Why keys of the file change nothing: all but those of the tokenizer, which accounts for its own.

    Raises ConfigError listing by name the keys of the architecture that change what the model computes and are not
    read here. A key whose value is 0, false or empty switches something off, so it is no reason.
    """
    entries = Entries({k: v for k, v in file.metadata.items() if not k.startswith("tokenizer.")}, file.path)
    if (kind := entries.entries.get("general.type", "model")) != "model":
        entries.refuse("general.type", f"a file of the type {kind} is not a model")
    fields = {f.metadata.get("gguf") for f in dataclasses.fields(family.config_class)}  # type: ignore[arg-type]
    rotary = [f"rope.{k}" for k in (*_ROPE, *_YARN)] if hasattr(config, "rope_scaling") else []
    known = [k for k in fields if k] + rotary
    for key in (*_READ, *(f"{architecture}.{k}" for k in known)):
        entries.use(key)
    width, prefix = getattr(config, "width", None), f"{architecture}."
    usual = {"attention.value_length": width, "attention.key_length": width, **_USUAL}
    for key in entries.left:
        name, value = key.removeprefix(prefix), entries.entries[key]
        if not key.startswith(prefix):
            reason = next((why for start, why in _GENERAL.items() if key.startswith(start)), "")
            entries.note(key, reason or f"llama.cpp reads nothing of it for {architecture}")
        elif name in _NOTED:
            entries.note(key, _NOTED[name])
        elif name in usual and value == usual[name]:
            entries.note(key, "what llama.cpp takes where it is left out, and the only value that is computed here")
        elif name in usual:
            entries.refuse(key, f"only {usual[name]} is computed here")
        elif value:
            entries.refuse(key, f"it is not understood{did_you_mean(name, [*known, *usual])}")
        else:
            entries.note(key, "it switches nothing on")
    return entries.close(title=f"has {len(entries.problems)} keys that are not understood")
