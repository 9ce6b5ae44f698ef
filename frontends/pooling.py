"""How the vectors of a text's tokens become one: what sentence-transformers writes beside a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..ir.errors import ConfigError
from ..ir.files import Stage
from ..ir.safetensors import write_file
from ..ir.tensors import ArrayTensor
from ..ir.weights import Weights
from .entries import Note
from .json_file import read_json

Array = np.ndarray[Any, Any]

FILE, TENSORS = "pooling.json", "pooling.safetensors"
"""Hold the same beside a built model: settings, and the weights of dense layers if there are any."""

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_LEAST = np.float32(1e-9)


def _gelu(x: Array) -> Array:
    return (0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))).astype(x.dtype)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "GELU": _gelu,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "SiLU": lambda x: x / (1 + np.exp(-x)),
}


@dataclass(frozen=True, eq=False)
class Dense:
    """activation(x @ weight.T + bias), after pooling. residual: the input is added, through its own weight if it has
    one. weight [out, in]."""

    activation: str
    weight: Array
    bias: Array | None = None
    residual: bool = False
    residual_weight: Array | None = None

    def __call__(self, x: Array) -> Array:
        y = x @ self.weight.T
        y = ACTIVATIONS[self.activation](y if self.bias is None else y + self.bias)
        if self.residual:
            y = y + (x if self.residual_weight is None else x @ self.residual_weight.T)
        return y

    def tensors(self) -> dict[str, Array]:
        """The arrays under the names that sentence-transformers has for them."""
        found = {"linear.weight": self.weight, "linear.bias": self.bias, "residual.weight": self.residual_weight}
        return {k: x for k, x in found.items() if x is not None}

    @staticmethod
    def of(activation: str, residual: bool, tensors: Mapping[str, Array]) -> Dense:
        wide = {k: x.astype(np.float32) for k, x in tensors.items()}
        return Dense(activation, wide["linear.weight"], wide.get("linear.bias"), residual, wide.get("residual.weight"))


@dataclass(frozen=True)
class Pooling:
    """How the vectors of a text's tokens become one.

    mode: one of MODES, or several whose vectors are put one after another. `mean` over the tokens, or their sum over
    the root of their number; `weightedmean` counts later tokens more; the vector of the first token (`cls`) or of the
    last; or the largest value of each channel. normalize: to length 1, after the dense layers. max_length: tokens
    after which a text is cut off (None: it is not). prompts: texts put before a text, by name; default_prompt: the
    one that is taken unless another is asked for. include_prompt: whether its tokens are pooled, too. lower_case:
    texts are read in small letters. notes: what the files say that changes nothing here.
    """

    mode: str | tuple[str, ...] = "mean"
    normalize: bool = True
    max_length: int | None = None
    dense: tuple[Dense, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    default_prompt: str | None = None
    include_prompt: bool = True
    lower_case: bool = False
    notes: tuple[Note, ...] = field(default=(), compare=False)

    @property
    def modes(self) -> tuple[str, ...]:
        return (self.mode,) if isinstance(self.mode, str) else tuple(self.mode)

    @staticmethod
    def read(folder: str | Path) -> Pooling | None:
        """From pooling.json, or from the modules.json of sentence-transformers; None if there is neither.

        Raises ConfigError naming the file and all that is not understood.
        """
        from .sentence_transformers import read_modules

        folder = Path(folder)
        own = read_json(folder / FILE)
        if own:
            return _own(own, folder)
        return read_modules(folder) if (folder / "modules.json").is_file() else None

    def write(self, stage: Stage) -> None:
        """Add pooling.json, and the weights of dense layers, to files that appear together."""
        settings = {k: getattr(self, k) for k in _SETTINGS}
        layers = [{"activation": d.activation, "residual": d.residual} for d in self.dense]
        with stage.open(FILE) as f:
            f.write((json.dumps({**settings, "dense": layers}) + "\n").encode())
        if self.dense:
            arrays = {f"{i}.{k}": x for i, d in enumerate(self.dense) for k, x in d.tensors().items()}
            with stage.open(TENSORS) as f:
                write_file(f, {k: ArrayTensor(x) for k, x in arrays.items()}, {})

    def __call__(self, hidden: Array, mask: Array, prompt: int = 0) -> Array:
        """f32 [B,C] from hidden [B,S,C] and a mask [B,S] with at least one 1 a row, padded on the right.

        prompt: tokens at the start of each row that belong to the prompt.
        """
        wide, kept = hidden.astype(np.float32), mask.astype(bool)
        if prompt and not self.include_prompt:
            kept = kept.copy()
            kept[:, :prompt] = False
        x = np.concatenate([_pooled(mode, wide, kept) for mode in self.modes], axis=-1)
        for layer in self.dense:
            x = layer(x)
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) if self.normalize else x


_SETTINGS = ("mode", "normalize", "max_length", "prompts", "default_prompt", "include_prompt", "lower_case")


def _pooled(mode: str, x: Array, kept: Array) -> Array:
    """[B,C] from x [B,S,C] and kept [B,S]; a row of which nothing is kept gives what sentence-transformers gives."""
    rows, shown = np.arange(len(x)), kept[..., None]
    if mode == "cls":
        return x[rows, kept.argmax(axis=1)]
    if mode == "lasttoken":
        last = kept.shape[1] - 1 - kept[:, ::-1].argmax(axis=1)
        return np.where(np.any(shown, axis=1), x[rows, last], np.float32(0))
    if mode == "max":
        return np.where(shown, x, -np.inf).max(axis=1)
    if mode == "weightedmean":
        weights = kept * np.arange(1, kept.shape[1] + 1, dtype=np.float32)
        return (x * weights[..., None]).sum(axis=1) / np.maximum(weights.sum(axis=1), _LEAST)[:, None]
    count = np.maximum(kept.sum(axis=1, dtype=np.float32), _LEAST)[:, None]
    return np.where(shown, x, 0).sum(axis=1) / (count if mode == "mean" else np.sqrt(count))


def _own(said: Mapping[str, Any], folder: Path) -> Pooling:
    """What `Pooling.write` wrote. Raises ConfigError for anything else."""
    mode: Any = said.get("mode")
    mode = tuple(cast("list[str]", mode)) if isinstance(mode, list) else mode
    modes: list[Any] = [*cast("tuple[str, ...]", mode)] if isinstance(mode, tuple) else [mode]
    known = all(m in MODES for m in modes)
    layers: Any = said.get("dense") or []
    if not known or said.keys() - {*_SETTINGS, "dense"} or not isinstance(layers, list):
        raise ConfigError(f"describes no pooling: {dict(said)}", place=str(folder / FILE))
    dense: list[Dense] = []
    if layers:
        stored = Weights.open(folder / TENSORS)
        for i, layer in enumerate(cast("list[dict[str, Any]]", layers)):
            arrays = {k.removeprefix(f"{i}."): stored.numpy(k) for k in stored if k.startswith(f"{i}.")}
            dense.append(Dense.of(layer["activation"], layer["residual"], arrays))
    settings = {k: said[k] for k in _SETTINGS if k in said and k != "mode"}
    return Pooling(modes[0] if len(modes) == 1 else tuple(modes), dense=tuple(dense), **settings)
