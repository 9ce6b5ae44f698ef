"""One tiny model of every family: sizes that its config shares with SMALL, and what is its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from monograph import frontends
from monograph.frontends.dsl import Model, load_family

FAMILIES = sorted(p.stem for p in (Path(frontends.__file__).parent / "models").glob("[!_]*.py"))
SMALL: dict[str, Any] = {
    "vocab": 50, "dim": 16, "heads": 4, "kv_heads": 2, "ffn": 24, "inner": 24, "layers": 2, "decoder_layers": 2,
    "decoder_heads": 4, "decoder_ffn": 24, "head_dim": 4, "rotary_dim": 4, "window": 3, "experts": 4, "chosen": 2,
    "max_positions": 64,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "expert_ffn": 12, "groups": 2, "chosen_groups": 1, "dense": 1, "q_rank": 8, "rank": 6, "turned": 4, "plain": 5,
        "values": 7,
    },
    "mamba2": {"width": 8, "size": 5, "groups": 2},
    "whisper": {"mels": 5, "source_positions": 4},
    "vit": {"image": 8, "patch": 4},
}  # fmt: skip
"""Fields of one family only."""


def small(family: str) -> Model:
    """A model of the family without weights."""
    found = load_family(family)
    fields = {f.name for f in dataclasses.fields(found.config_class)}
    return found(**{k: v for k, v in {**SMALL, **OWN.get(family, {})}.items() if k in fields})
