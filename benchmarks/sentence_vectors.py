"""Vectors of folders that sentence-transformers writes, old layout and new, here and there.

It needs sentence-transformers, which is no dependency of this project: run it in an environment that has both.
--record FILE keeps the folders' settings and the vectors, which the tests read; --into FILE adds them to those of
another version.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monograph as mg
import numpy as np
from report import Row, parser, publish
from sentence_base import TEXTS, WIDTH, dense_arrays, write_base

try:
    import sentence_transformers as theirs  # pyright: ignore[reportMissingImports] - of another environment
    import torch
    from sentence_transformers.models import (  # pyright: ignore[reportMissingImports]
        Dense,
        Normalize,
        Pooling,
        Transformer,
    )
except ImportError as e:
    sys.exit(f"this needs sentence-transformers (pip install sentence-transformers): {e}")

QUERY = {"query": "query : ", "passage": "passage : "}
MODES = ("mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


def dense(inputs: int, outputs: int, activation: Any, *, bias: bool = True) -> Any:
    layer = Dense(inputs, outputs, bias=bias, activation_function=activation)
    layer.load_state_dict({k: torch.from_numpy(x) for k, x in dense_arrays(inputs, outputs, bias=bias).items()})
    return layer


def cases() -> dict[str, tuple[Callable[[str], list[Any]], dict[str, Any]]]:
    """The modules of each folder, from that of the transformer, and what else it says."""
    found: dict[str, tuple[Callable[[str], list[Any]], dict[str, Any]]] = {}
    for mode in MODES:
        found[mode] = (lambda base, mode=mode: [Transformer(base), Pooling(WIDTH, mode), Normalize()], {})
    several = {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}
    tanh, identity, gelu = torch.nn.Tanh(), torch.nn.Identity(), torch.nn.GELU()
    return found | {
        "not normalized": (lambda base: [Transformer(base), Pooling(WIDTH, "mean")], {}),
        "several": (lambda base: [Transformer(base), Pooling(WIDTH, **several), Normalize()], {}),
        "cut": (lambda base: [Transformer(base, max_seq_length=6), Pooling(WIDTH, "cls"), Normalize()], {}),
        "small letters": (lambda base: [Transformer(base, do_lower_case=True), Pooling(WIDTH, "mean")], {}),
        "dense": (lambda base: [Transformer(base), Pooling(WIDTH, "mean"), dense(WIDTH, 12, tanh), Normalize()], {}),
        "two dense": (
            lambda base: [
                Transformer(base), Pooling(WIDTH, "max"), dense(WIDTH, 20, gelu), dense(20, 8, identity, bias=False),
            ],
            {},
        ),
        "prompts": (
            lambda base: [Transformer(base), Pooling(WIDTH, "mean"), Normalize()],
            {"prompts": QUERY, "default_prompt_name": "query"},
        ),
        "prompts left out": (
            lambda base: [Transformer(base), Pooling(WIDTH, "mean", include_prompt=False)],
            {"prompts": QUERY},
        ),
    }  # fmt: skip


def made(folder: Path, base: Path, modules: Callable[[str], list[Any]], options: dict[str, Any]) -> dict[str, Any]:
    """Write a folder; the vectors it gives there once it has been read again, by name of the prompt ("" for none)."""
    theirs.SentenceTransformer(modules=modules(str(base)), device="cpu", **options).save(str(folder))
    again = theirs.SentenceTransformer(str(folder), device="cpu")
    found = {"": again.encode(list(TEXTS))}
    for name in options.get("prompts", {}):
        found[name] = again.encode(list(TEXTS), prompt_name=name)
    return {k: np.asarray(v, np.float32) for k, v in found.items()}


def row(name: str, folder: Path, vectors: dict[str, Any]) -> Row:
    engine = mg.build(mg.load(folder))
    off = max(np.abs(engine.embed(list(TEXTS), prompt_name=k or None) - v).max() for k, v in vectors.items())
    return {"folder": name, "sentence-transformers": theirs.__version__, "largest difference": float(off)}


def settings(folder: Path) -> dict[str, str]:
    """The texts of a folder's settings, without what the base has anyway."""
    skipped = ("tokenizer.json", "README.md", "vocab.txt", "config.json", "special_tokens_map.json")
    files = [p for p in sorted(folder.rglob("*.json")) if p.name not in skipped or p.parent != folder]
    return {str(p.relative_to(folder)): p.read_text() for p in files}


def normalizer(folder: Path) -> Any:
    return json.loads((folder / "tokenizer.json").read_text())["normalizer"]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--record", type=Path, help="where to keep settings and vectors")
    options.add_argument("--into", type=Path, help="a file to add settings and vectors to")
    given = options.parse_args()
    rows: list[Row] = []
    kept: dict[str, Any] = json.loads(given.into.read_text()) if given.into else {}
    with tempfile.TemporaryDirectory() as place:
        base = Path(place) / "base"
        write_base(base)
        for name, (modules, more) in cases().items():
            folder = Path(place) / name.replace(" ", "_")
            vectors = made(folder, base, modules, more)
            rows.append(row(name, folder, vectors))
            if normalizer(folder) != normalizer(base):
                continue  # The folder has a tokenizer of its own, which is not kept.
            kept[f"{name}, {theirs.__version__}"] = {
                "files": settings(folder),
                "vectors": {k: [[float(f"{x:.5g}") for x in v] for v in vs] for k, vs in vectors.items()},
            }
    if given.record or given.into:
        lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in kept.items())
        (given.record or given.into).write_text(f"{{\n{lines}\n}}\n")
    publish("sentence_vectors", rows, only_print=given.no_publish)


if __name__ == "__main__":
    main()
