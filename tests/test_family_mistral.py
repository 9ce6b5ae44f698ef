"""Mistral against transformers: with a window and without one."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_parity import Case, check

pytestmark = pytest.mark.slow

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "sliding_window": 4,
}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0}
CASES = {
    "mistral": Case("MistralForCausalLM", SIZES),
    "mistral-without-window": Case("MistralForCausalLM", {**SIZES, "sliding_window": None}),
    "mistral-wide-heads": Case(
        "MistralForCausalLM",
        {**SIZES, "head_dim": 10, "sliding_window": 2, "tie_word_embeddings": True, "rope_parameters": LINEAR},
    ),
    "mistral-window-of-one": Case("MistralForCausalLM", {**SIZES, "sliding_window": 1, "num_key_value_heads": 4}),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)
