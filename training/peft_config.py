"""adapter_config.json as PEFT writes it: each entry is used, noted with a reason, or refused by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from ..frontends.entries import Entries, Note

TASKS = {
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "feature-extraction": "FEATURE_EXTRACTION",
}
"""PEFT's names of tasks."""

_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to start A and B that leave the base weights alone; after others an adapter fits changed weights only."""
_FROM_TENSORS = "the tensors of the file say which layers are adapted"
_NOTED = {
    **dict.fromkeys(("auto_mapping", "revision", "inference_mode", "peft_version", "base_model_class"),
                    "says where the adapter comes from"),
    **dict.fromkeys(("eva_config", "corda_config", "loftq_config", "lora_ga_config"), "says how it was started"),
    **dict.fromkeys(("runtime_config", "megatron_core", "qalora_group_size"), "an option of a method that is off"),
    **dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"), _FROM_TENSORS),
    "fan_in_fan_out": "how a base layer stores its weight is known from the graph",
    "ensure_weight_tying": _FROM_TENSORS,
    "lora_bias": "the file has the bias of each B",
    "bias": "the file has each bias that was trained",
}  # fmt: skip
_OFF: tuple[Any, ...] = (None, False, [], {}, "")
TITLE = "is not an adapter that is understood"


@dataclass(frozen=True)
class PeftConfig:
    """What a configuration says of the numbers: rank and alpha by module, and tokens whose rows were trained.

    dora: each adapted layer has a magnitude. task: what the adapted model is for, if the file says so.
    """

    rank: int
    alpha: float
    targets: str | tuple[str, ...]
    dropout: float
    rank_stabilized: bool
    base: str
    ranks: Mapping[str, int] = field(default_factory=dict[str, int])
    alphas: Mapping[str, float] = field(default_factory=dict[str, float])
    tokens: tuple[int, ...] | Mapping[str, tuple[int, ...]] = ()
    dora: bool = False
    task: str | None = None
    notes: tuple[Note, ...] = ()

    def rank_of(self, module: str) -> int:
        return self.ranks.get(_pattern(self.ranks, module), self.rank)

    def scale_of(self, module: str) -> float:
        """alpha / rank of one module, or alpha / sqrt(rank)."""
        alpha, rank = self.alphas.get(_pattern(self.alphas, module), self.alpha), self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def read_config(settings: Mapping[str, Any], place: str) -> PeftConfig:
    """The adapter that a PEFT configuration describes. Raises ConfigError listing all that is not understood."""
    entries = Entries(settings, place)
    if entries.use("peft_type") != "LORA":
        entries.refuse("peft_type", "expected 'LORA'")
    if entries.use("init_lora_weights", True) not in _STARTS:
        entries.refuse("init_lora_weights", "it changes the base weights")
    if settings.get("bias", "none") not in ("none", "all", "lora_only"):
        entries.refuse("bias", "expected none, all or lora_only")
    for key, why in _NOTED.items():
        entries.note(key, why)
    rank, alpha, dropout = (entries.use(k, d) for k, d in (("r", 8), ("lora_alpha", 8), ("lora_dropout", 0.0)))
    if not _is_rank(rank):
        entries.refuse("r", "expected an integer from 1")
    if not _is_number(alpha):
        entries.refuse("lora_alpha", "expected a number")
    if not _is_number(dropout) or not 0 <= dropout < 1:
        entries.refuse("lora_dropout", "expected a number from 0 to less than 1")
    targets = _targets(entries)
    ranks = _by_pattern(entries, "rank_pattern", _is_rank, "an integer from 1")
    alphas = _by_pattern(entries, "alpha_pattern", _is_number, "a number")
    tokens = _tokens(entries)
    dora, stabilized, base = (
        bool(entries.use("use_dora")),
        bool(entries.use("use_rslora")),
        str(entries.use("base_model_name_or_path") or ""),
    )
    said: Any = entries.use("task_type")
    task = next((ours for ours, name in TASKS.items() if name == said), None)
    for key in entries.left:
        if settings[key] in _OFF:
            entries.note(key, "it is off")
        else:
            entries.refuse(key, "it is not supported")
    notes = entries.close(title=TITLE)
    return PeftConfig(
        rank, float(alpha), targets, float(dropout), stabilized, base, ranks, alphas, tokens, dora, task, notes
    )


def _targets(entries: Entries) -> str | tuple[str, ...]:
    targets = entries.use("target_modules")
    listed = cast("list[Any]", targets) if isinstance(targets, list) else []
    if not targets or not (isinstance(targets, str) or all(isinstance(t, str) for t in listed)):
        entries.refuse("target_modules", "expected names or a pattern")
    return targets if isinstance(targets, str) else tuple(map(str, listed))


def _by_pattern(entries: Entries, key: str, fits: Any, expected: str) -> dict[str, Any]:
    """Numbers by a regular expression for the end of a module path."""
    said: Any = entries.use(key) or {}
    if not isinstance(said, dict) or not all(_is_pattern(k) and fits(v) for k, v in cast("Any", said).items()):
        entries.refuse(key, f"expected {expected} by the name of a module")
        return {}
    return cast("dict[str, Any]", said)


def _tokens(entries: Entries) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    said: Any = entries.use("trainable_token_indices") or []
    lists: list[Any] = list(cast("Any", said).values()) if isinstance(said, dict) else [said]
    if not all(isinstance(x, list) and all(isinstance(i, int) and i >= 0 for i in cast("Any", x)) for x in lists):
        entries.refuse("trainable_token_indices", "expected ids, or lists of ids by the name of an embedding")
        return ()
    return {k: tuple(v) for k, v in cast("Any", said).items()} if isinstance(said, dict) else tuple(said)


def _pattern(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that the end of a module path matches, as PEFT looks for it."""
    return next((k for k in patterns if re.match(rf"(.*\.)?({k})$", module)), module)


def _is_pattern(text: Any) -> bool:
    try:
        re.compile(text)
    except (re.error, TypeError):
        return False
    return isinstance(text, str)


def _is_rank(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x >= 1


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
