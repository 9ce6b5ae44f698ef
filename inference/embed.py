"""One vector a text from an encoder: pooling as the sentence-transformers files beside a checkpoint say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..frontends.tokenizer import Tokenizer, read_json
from ..ir.errors import ConfigError, RuntimeInputError
from ..ir.files import staged
from .prompts import pad
from .sampling import Array

FILE = "pooling.json"
MODES = ("mean", "cls", "max")
_STEPS = ("Transformer", "Pooling", "Normalize")


class Encoder(Protocol):
    """A model without state."""

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Outputs by name: `last_hidden_state` [B,S,C] for `input_ids` and `attention_mask` i64 [B,S]."""
        ...


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
    def read(folder: str | Path) -> Pooling:
        """From pooling.json, or from the modules.json of sentence-transformers; the default if there is neither.

        Raises ConfigError naming the file for a module or a mode that is not understood.
        """
        folder = Path(folder)
        own = read_json(folder / FILE)
        if own:
            unknown = own.keys() - {f.name for f in dataclasses.fields(Pooling)}
            if unknown or own.get("mode") not in MODES:
                raise ConfigError(f"describes no pooling: {own}", place=str(folder / FILE))
            return Pooling(**own)
        if not (folder / "modules.json").is_file():
            return Pooling()
        return _sentence_transformers(folder)

    def save(self, folder: str | Path) -> None:
        """Write pooling.json into `folder`."""
        with staged(folder) as stage, stage.open(FILE) as f:
            f.write(json.dumps(dataclasses.asdict(self)).encode())

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


def embed(
    session: Encoder, tokenizer: Tokenizer, texts: str | Sequence[str], pooling: Pooling, *, batch: int = 32
) -> Array:
    """One vector a text, f32 [len(texts), C]; for a single text [C].

    Texts of like length are run together, `batch` at a time; the result does not depend on that.
    """
    if isinstance(texts, str):
        return embed(session, tokenizer, [texts], pooling)[0]
    if len(texts) == 0:
        raise RuntimeInputError("there are no texts to embed")
    rows = [tokens_of(tokenizer, t, pooling.max_length) for t in texts]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: dict[int, Array] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        tokens, lengths = pad([rows[i] for i in chosen], tokenizer.pad_id or 0)
        mask = (np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int64)
        outputs = session.run({"input_ids": tokens, "attention_mask": mask})
        if "last_hidden_state" not in outputs:
            raise RuntimeInputError(f"the model gives {', '.join(outputs)}, not the last_hidden_state of an encoder")
        found |= dict(zip(chosen, pooling(outputs["last_hidden_state"], mask), strict=True))
    return np.stack([found[i] for i in range(len(rows))])


def tokens_of(tokenizer: Tokenizer, text: str, max_length: int | None) -> list[int]:
    """Ids with special tokens; a text that is too long loses its end, but not the special token after it."""
    if max_length is not None:
        tokenizer.core.enable_truncation(max_length)
    try:
        ids = tokenizer.encode(text)
    finally:
        tokenizer.core.no_truncation()
    if not ids:
        raise RuntimeInputError(f"the text {text!r} has no tokens")
    return ids


def _sentence_transformers(folder: Path) -> Pooling:
    path = folder / "modules.json"
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
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
