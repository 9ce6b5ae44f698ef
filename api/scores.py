"""How good translations are: held-out pairs through the built engine, BLEU and chrF, and the sentences to read."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .building import build
from .frontends.dsl import Model
from .ir.errors import ConfigError
from .ir.files import staged
from .training.ragged import encode_all

FILE = "translations.tsv"
_BATCH = 32


def check_scores() -> None:
    """Raises ConfigError if sacrebleu is not installed."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise ConfigError("metrics.translate needs sacrebleu", hint="pip install monograph[metrics]")


def scores(model: Model, pairs: Sequence[tuple[str, str]], folder: Path, length: int) -> dict[str, float]:
    """BLEU (Papineni et al. 2002) and chrF (Popović 2015) of greedy translations, 0 to 100, as sacrebleu counts them.

    pairs: source and reference. Each source is translated by the model built for ONNX Runtime, to at most `length`
    tokens. folder: gets translations.tsv with source, reference and hypothesis in its columns.
    """
    import sacrebleu

    metric: Any = sacrebleu  # its annotations have open parts
    with tempfile.TemporaryDirectory(prefix="monograph-") as place:
        found = translate(build(model, Path(place) / "built"), [source for source, _ in pairs], length)
    references = [reference for _, reference in pairs]
    with staged(folder) as stage, stage.open(FILE) as f:
        f.write(b"source\treference\thypothesis\n")
        for (source, reference), hypothesis in zip(pairs, found, strict=True):
            f.write(("\t".join(" ".join(t.split()) for t in (source, reference, hypothesis)) + "\n").encode())
    bleu, chrf = metric.corpus_bleu(found, [references]), metric.corpus_chrf(found, [references])
    return {"bleu": bleu.score, "chrf": chrf.score, "translated": float(len(found))}


def translate(engine: Any, sources: Sequence[str], length: int) -> list[str]:
    """The likeliest token after each token, for each source; sources of like length go together."""
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    found: dict[int, str] = {}
    for at in range(0, len(order), _BATCH):
        rows = order[at : at + _BATCH]
        # As in training: the name of a special token written in a text is plain text.
        given = list(encode_all(engine.tokenizer, [sources[i] for i in rows], add_special=True))
        results = engine.generate(given, max_new_tokens=length)
        found |= {i: r.text.strip() for i, r in zip(rows, results, strict=True)}
    return [found[i] for i in range(len(sources))]
