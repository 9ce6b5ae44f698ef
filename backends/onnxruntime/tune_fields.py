"""What is tried, in which order: changes of choices by the field that they are about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

from .choices import Choices, PromptForm
from .options import physical_cores


@dataclass(frozen=True)
class Field:
    """One decision. changes: what may be chosen, as fields of `Choices`; what the choices already say is left out."""

    name: str
    changes: tuple[Mapping[str, Any], ...]

    def candidates(self, now: Choices) -> Iterator[tuple[str, Choices]]:
        """(how it reads, the choices) for everything that `now` does not say."""
        for change in self.changes:
            found = replace(now, **change)
            if found != now:
                yield self.said(found), found

    def said(self, choices: Choices) -> str:
        """What choices say about it."""
        if self.changes == (PORTABLE,):
            return "as the portable graph" if replace(choices, **PORTABLE) == choices else "as it is"
        names = dict.fromkeys(k for change in self.changes for k in change)
        if len(names) == 1:
            return _shown(getattr(choices, next(iter(names))))
        return ", ".join(f"{k} {_shown(getattr(choices, k))}" for k in names)


PORTABLE: Mapping[str, Any] = {
    "shared_cache": False, "attention": "standard", "pack_projections": False, "pack_gates": False,
    "skip_rms_norm": False, "skip_layer_norm": True, "quick_gelu": False, "bias_gelu": True, "bias_gemm": True,
    "tied_head": "transposed", "rotary_table": 0,
}  # fmt: skip
"""What ONNX Runtime makes of the portable graph, as near as choices come to it."""


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(cast("tuple[str, ...]", value)) or "none" if isinstance(value, tuple) else str(value)


def _either(name: str, *values: Any) -> Field:
    return Field(name, tuple({name: v} for v in values or (True, False)))


_HEADS: tuple[tuple[int, bool], ...] = ((4, True), (4, False), (0, True))
"""Accuracy level of a tied head, and whether it takes both parts of its activations."""


def fields() -> tuple[Field, ...]:
    """All decisions: first those from which most is to be expected, each made with the ones before it.

    The form of caches and attention; how products of blocks are computed; what is packed or fused; the session.
    """
    forms = [(cache, op) for cache in (True, False) for op in ("multi_head", "standard", "parts")]
    cores = physical_cores()
    return (
        Field("all", (PORTABLE,)),
        Field("attention", tuple({"shared_cache": c, "attention": op} for c, op in forms)),
        Field("int4", tuple({"int4_level": n, "prompts": p} for n in (0, 4) for p in get_args(PromptForm))),
        _either("int8_level", 4, 0),
        _either("prompts", *get_args(PromptForm)),
        Field("head", tuple({"int4_head": n, "int8_head": n, "fine_head": f} for n, f in _HEADS)),
        _either("flash"),
        _either("pack_projections"),
        _either("pack_gates"),
        _either("tied_head", "stored", "transposed"),
        _either("skip_rms_norm"),
        _either("skip_layer_norm"),
        _either("quick_gelu"),
        _either("bias_gelu"),
        _either("bias_gemm"),
        _either("block_embedding"),
        _either("rotary_table", 4 << 20, 0),
        _either("disabled_optimizers", (), ("TransposeOptimizer",)),
        _either("spinning"),
        _either("threads", 0, *dict.fromkeys(n for n in (1, cores // 2, cores - 1) if 0 < n < cores)),
    )  # fmt: skip
