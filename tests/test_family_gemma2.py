"""Gemma 2 against transformers: windows, soft caps, layers of a chosen kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_parity import Case, check
from monograph.frontends.models.gemma2 import Gemma2, gemma2
from monograph.frontends.reference import read_config
from monograph.ir.errors import ConfigError

pytestmark = pytest.mark.slow

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "sliding_window": 4,
    "query_pre_attn_scalar": 6,
}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
KINDS = ["full_attention", "full_attention", "sliding_attention"]
CASES = {
    "gemma2": Case("Gemma2ForCausalLM", {**SIZES, **CAPS}),
    "gemma2-without-caps": Case(
        "Gemma2ForCausalLM", {**SIZES, "attn_logit_softcapping": None, "final_logit_softcapping": None}
    ),
    "gemma2-chosen-layers": Case("Gemma2ForCausalLM", {**SIZES, **CAPS, "layer_types": KINDS, "attention_bias": True}),
    "gemma2-untied": Case(
        "Gemma2ForCausalLM", {**SIZES, **CAPS, "tie_word_embeddings": False, "hidden_activation": "silu"}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


def test_what_cannot_be_computed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer_types are \['full'\], expected 'sliding_attention' or"):
        gemma2(Gemma2.from_dict({**SIZES, "layer_types": ["full"]})).graph()
    with pytest.raises(ConfigError, match=r"'use_bidirectional_attention' = True: .* only None is computed here"):
        read_config(gemma2, {**SIZES, "use_bidirectional_attention": True})
    read_config(gemma2, {**SIZES, "use_bidirectional_attention": False})
