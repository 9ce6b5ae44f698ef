"""N-gram tables in the ARPA format, which other language model tools read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from ...ir.errors import ConfigError
from ...ir.files import staged
from ...ir.tensors import Array
from .ngram import NGram

MARKERS = ("<unk>", "<s>", "</s>")
_LINES = 1 << 16
_LOWEST = -99.0
"""What the format writes for the logarithm of 0."""


def save_arpa(model: NGram, file: str | Path, words: Sequence[str] | None = None) -> Path:
    """Write every n-gram with log10 of its probability and of its backoff weight; whole or not at all.

    words: what stands for each token (None: its number), without white space, all different. What is missing of <s>,
    </s> and <unk>, which readers insist on, is added as impossible. Raises ConfigError for other words.
    """
    names = [str(i) for i in range(model.vocab)] if words is None else list(words)
    wrong = next((w for w in names if not w or w.split() != [w]), None)
    if len(names) != model.vocab or len(set(names)) != model.vocab or wrong is not None:
        what = f"{wrong!r} cannot stand in an ARPA file" if wrong is not None else f"{len(set(names))} different words"
        raise ConfigError(f"{what}, expected {model.vocab} without white space")
    names += [w for w in MARKERS if w not in names]
    sizes = (len(names), *(len(x.keys) for x in model.levels))
    path = Path(file)
    with staged(path.parent) as stage, stage.path(path.name).open("w", encoding="utf-8") as f:
        f.write("\\data\\\n")
        f.writelines(f"ngram {k}={n}\n" for k, n in enumerate(sizes, 1))
        _sections(model, np.array(names), f)
        f.write("\n\\end\\\n")
    return path


def _sections(model: NGram, names: Array, f: TextIO) -> None:
    grams = np.arange(model.vocab)[:, None]
    probabilities = [model.unigram, *(x.probability for x in model.levels)]
    for k, probability in enumerate(probabilities, 1):
        if k > 1:
            keys = model.levels[k - 2].keys
            grams = np.concatenate([grams[keys // model.vocab], keys[:, None] % model.vocab], axis=1)
        f.write(f"\n\\{k}-grams:\n")
        backoff = model.levels[k - 1].backoff if k <= len(model.levels) else None
        for start in range(0, len(grams), _LINES):
            part = slice(start, start + _LINES)
            ends = [""] * _LINES if backoff is None else [f"\t{x:.9g}" for x in _log10(backoff[part])]
            texts = (" ".join(row) for row in names[grams[part]])
            rows = zip(_log10(probability[part]), texts, ends, strict=False)
            f.writelines(f"{p:.9g}\t{text}{end}\n" for p, text, end in rows)
        if k == 1:
            f.writelines(f"{_LOWEST:g}\t{marker}\n" for marker in names[model.vocab :])


def _log10(x: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.maximum(np.log10(x), _LOWEST)
