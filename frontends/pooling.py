"""How the vectors of a text's tokens become one: what sentence-transformers writes beside a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.documents import parse_json, read_text
from ..ir.errors import ConfigError
from .tokenizer import read_json

Array = np.ndarray[Any, Any]

FILE = "pooling.json"
"""Holds the same in one file, beside a built model."""

MODES = ("mean", "cls", "max")
_STEPS = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class Pooling:
    """How the vectors of a text's tokens become one.

    mode: `mean` over the tokens, the vector of the first one (`cls`), or the largest value of each channel (`max`).
    normalize: to length 1. max_length: tokens after which a text is cut off (None: it is not).
    """

    mode: str = "mean"
    normalize: bool = True
    max_length: int | None = None

    @staticmethod
    def read(folder: str | Path) -> Pooling | None:
        """From pooling.json, or from the modules.json of sentence-transformers; None if there is neither.

        Raises ConfigError naming the file for a module or a mode that is not understood.
        """
        folder = Path(folder)
        own = read_json(folder / FILE)
        if own:
            unknown = own.keys() - {f.name for f in dataclasses.fields(Pooling)}
            if unknown or own.get("mode") not in MODES:
                raise ConfigError(f"describes no pooling: {own}", place=str(folder / FILE))
            return Pooling(**own)
        return _sentence_transformers(folder) if (folder / "modules.json").is_file() else None

    def to_json(self) -> str:
        """The content of pooling.json."""
        return json.dumps(dataclasses.asdict(self)) + "\n"

    def __call__(self, hidden: Array, mask: Array) -> Array:
        """f32 [B,C] from hidden [B,S,C] and a mask [B,S] with at least one 1 a row."""
        wide, kept = hidden.astype(np.float32), mask.astype(bool)[..., None]
        if self.mode == "mean":
            x = np.where(kept, wide, 0).sum(axis=1) / kept.sum(axis=1, dtype=np.float32)
        elif self.mode == "max":
            x = np.where(kept, wide, -np.inf).max(axis=1)
        else:
            x = wide[np.arange(len(wide)), mask.argmax(axis=1)]
        return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) if self.normalize else x


def _sentence_transformers(folder: Path) -> Pooling:
    path = folder / "modules.json"
    try:
        modules = parse_json(read_text(path))
        kinds = {str(m["type"]).rpartition(".")[2]: str(m.get("path", "")) for m in modules}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
        raise ConfigError(f"is not a list of modules: {e}", place=str(path)) from None
    unknown = [k for k in kinds if k not in _STEPS]
    if unknown:
        raise ConfigError(f"has a module {unknown[0]!r}; known: {', '.join(_STEPS)}", place=str(path))
    settings = read_json(folder / kinds.get("Pooling", "1_Pooling") / "config.json")
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
    chosen = [k for k, v in settings.items() if k.startswith("pooling_mode_") and v is True] or [*modes][:1]
    if len(chosen) != 1 or chosen[0] not in modes:
        raise ConfigError(f"pools by {', '.join(chosen)}; known: one of {', '.join(modes)}", place=str(folder))
    length = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    return Pooling(modes[chosen[0]], "Normalize" in kinds, length if isinstance(length, int) else None)
