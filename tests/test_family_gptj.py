"""GPT-J against transformers: blocks side by side behind one norm, interleaved rotary positions."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_parity import Case, check

pytestmark = pytest.mark.slow

GPTJ = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4}
CASES = {
    "gptj": Case("GPTJForCausalLM", GPTJ),
    "gptj-whole-heads": Case("GPTJForCausalLM", {**GPTJ, "rotary_dim": 8, "n_inner": 40}),
    "gptj-tied-relu": Case("GPTJForCausalLM", {**GPTJ, "tie_word_embeddings": True, "activation_function": "relu"}),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)
