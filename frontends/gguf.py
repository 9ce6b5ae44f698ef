"""A GGUF file as a Model: config from its metadata, weights under checkpoint names, its own tokenizer."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.errors import ConfigError, WeightsError
from ..ir.tensors import Array, Mapped, Tensor
from ..ir.weights import Weights
from .dsl import Family, Model, load_family
from .fit import check_plausible
from .gguf_config import ROPE_FACTORS, account, gguf_config, with_rope_scaling
from .gguf_file import GGUFFile, permute_rows, read_whole
from .gguf_tokenizer import gguf_tokenizer

MODEL_TYPES = {"gemma3": "gemma3_text"}
"""Families whose GGUF architecture is not called like their Hugging Face model_type."""


def load_gguf(path: str | Path, *, tokenizer: bool = True) -> Model:
    """Read a GGUF file: structure now, tensors when asked for. tokenizer: False leaves `Model.tokenizer` empty.

    Raises WeightsError for a damaged file or tensors that do not fit, ConfigError for what is not supported.
    """
    file = read_whole(path)
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise ConfigError("has no general.architecture", place=str(path))
    family = load_family(MODEL_TYPES.get(architecture, architecture))
    config = family.config_class.from_dict(gguf_config(file, family, architecture), str(path))
    check_plausible(config, Weights(file.tensors, str(path)))
    config = with_rope_scaling(file, architecture, config)
    notes = account(file, family, architecture, config)
    weights = Weights(_renamed(file, family, config), str(path))
    model = Model(family, config, weights, notes=notes)
    weights.check(model.graph())
    if tokenizer and "tokenizer.ggml.model" in file.metadata:
        model.tokenizer = gguf_tokenizer(file.metadata, str(path))
        model.notes += model.tokenizer.fitted(getattr(config, "vocab", None), path)
        ids = {"bos_token_id": model.tokenizer.bos_id, "eos_token_id": list(model.tokenizer.eos_ids)}
        model.generation = {k: v for k, v in ids.items() if v not in (None, [])}
    return model


def _renamed(file: GGUFFile, family: Family, config: Any) -> dict[str, Tensor]:
    """Tensors under checkpoint names, rotary rows back in order. A tensor that has no name there keeps its own."""
    if family.gguf is None:
        raise ConfigError(
            f"{family.name} has no table of GGUF names, so it is not read from GGUF", place=str(file.path)
        )
    table, permuted = family.gguf.names, family.gguf.permuted
    found: dict[str, Tensor] = {}
    for name, tensor in file.tensors.items():
        if name == ROPE_FACTORS:
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
