"""A GGUF file as a Model: config from its metadata, weights under checkpoint names, its own tokenizer."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import ConfigError, WeightsError
from ..ir.ops import rope_frequencies
from ..ir.tensors import Array, Mapped, Tensor
from ..ir.weights import Weights
from .dsl import Family, Model, load_family
from .fit import check_plausible
from .gguf_file import GGUFFile, permute_rows, read_gguf
from .gguf_tokenizer import gguf_tokenizer

MODEL_TYPES = {"gemma3": "gemma3_text"}
"""Families whose GGUF architecture is not called like their Hugging Face model_type."""

_FACTS: dict[str, Callable[[Collection[str]], bool]] = {
    "tie_word_embeddings": lambda names: "output.weight" not in names,
    "attention_bias": lambda names: "blk.0.attn_q.bias" in names,
    "mlp_bias": lambda names: "blk.0.ffn_gate.bias" in names,
}
"""Config keys that GGUF does not store but that its tensors tell."""

_ROPE_FACTORS = "rope_freqs.weight"


def load_gguf(path: str | Path, *, tokenizer: bool = True) -> Model:
    """Read a GGUF file: structure now, tensors when asked for. tokenizer: False leaves `Model.tokenizer` empty.

    Raises WeightsError for a damaged file or tensors that do not fit, ConfigError for what is not supported.
    """
    file = read_gguf(path)
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ConfigError("has no general.architecture", place=str(path))
    family = load_family(MODEL_TYPES.get(architecture, architecture))
    config = family.config_class.from_dict(gguf_config(file, family, architecture), str(path))
    check_plausible(config, Weights(file.tensors, str(path)))
    config = _with_rope_scaling(file, architecture, config)
    weights = Weights(_renamed(file, family, config), str(path))
    model = Model(family, config, weights)
    weights.check(model.graph())
    if tokenizer and "tokenizer.ggml.model" in file.metadata:
        model.tokenizer = gguf_tokenizer(file.metadata, str(path))
        ids = {"bos_token_id": model.tokenizer.bos_id, "eos_token_id": list(model.tokenizer.eos_ids)}
        model.generation = {k: v for k, v in ids.items() if v not in (None, [])}
    return model


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


def _with_rope_scaling(file: GGUFFile, architecture: str, config: Any) -> Any:
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
    kind = get("scaling.type", "none")
    if _ROPE_FACTORS in file.tensors:
        scaling = _llama3_scaling(file, config.width, config.theta)
    elif kind == "none":
        return config
    elif kind in ("linear", "yarn"):
        scaling = {"rope_type": kind, "factor": positive("scaling.factor")}
    else:
        raise ConfigError(f"has rope scaling of type {kind!r}; linear and yarn are supported", place=str(file.path))
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = positive("scaling.original_context_length")
    return dataclasses.replace(config, rope_scaling=scaling)


def _llama3_scaling(file: GGUFFile, width: int, theta: float) -> dict[str, Any]:
    """GGUF stores one factor a frequency where Llama 3.1 has a rule: find the rule that gives these factors."""
    factors = file.tensors[_ROPE_FACTORS].numpy()
    rule = {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain, scaled = (np.array(rope_frequencies(width, theta, s)[0]) for s in (None, rule))
    if factors.shape != plain.shape or not np.allclose(plain / scaled, factors, rtol=1e-4):
        raise ConfigError(f"has {_ROPE_FACTORS} that do not follow the rule of Llama 3.1", place=str(file.path))
    return rule


def _renamed(file: GGUFFile, family: Family, config: Any) -> dict[str, Tensor]:
    """Tensors under checkpoint names, rotary rows back in order. A tensor that has no name there keeps its own."""
    if family.gguf is None:
        raise ConfigError(
            f"{family.name} has no table of GGUF names, so it is not read from GGUF", place=str(file.path)
        )
    table, permuted = family.gguf.names, family.gguf.permuted
    found: dict[str, Tensor] = {}
    for name, tensor in file.tensors.items():
        if name == _ROPE_FACTORS:
            continue
        new = checkpoint_name(name, table)
        part = new.split(".")[-2] if "." in new else ""
        for pattern, number in family.gguf.added.items():
            if fnmatch.fnmatchcase(new, pattern):
                tensor = _without(tensor, number)
        if part in permuted and tensor.shape:
            tensor = permute_rows(tensor, rotary_order(tensor.shape[0], getattr(config, permuted[part]), name))
        found[new] = tensor
    return found


def _without(tensor: Tensor, number: float) -> Tensor:
    """A tensor as it was before `number` was added to it."""
    return Mapped(tensor, tensor.type, lambda x: x - x.dtype.type(number))


def checkpoint_name(name: str, table: Mapping[str, str]) -> str:
    """`blk.3.attn_q.weight` by {"blk.{}.attn_q": "layers.{}.q_proj"} is `layers.3.q_proj.weight`."""
    stem, _, suffix = name.rpartition(".")
    pattern, number = re.sub(r"\.\d+\.", ".{}.", stem, count=1), re.findall(r"\.(\d+)\.", stem)[:1]
    return f"{table[pattern].format(*number)}.{suffix}" if pattern in table else name


def rotary_order(rows: int, heads: int, name: str = "") -> Array:
    """Which GGUF row each checkpoint row is: (pair, half) inside a head there, (half, pair) here."""
    if rows % (2 * heads):
        raise WeightsError(f"tensor {name} has {rows} rows, not a multiple of twice its {heads} heads")
    return np.arange(rows).reshape(heads, -1, 2).transpose(0, 2, 1).reshape(-1)
