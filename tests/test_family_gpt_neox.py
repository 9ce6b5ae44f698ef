"""GPT-NeoX against transformers: blocks side by side or not, a part of each head rotated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from family_parity import Case, check, reference_model
from monograph.frontends.load import load
from safetensors.numpy import load_file, save_file

pytestmark = pytest.mark.slow

NEOX = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0, "partial_rotary_factor": 0.5}
CASES = {
    "gpt_neox": Case("GPTNeoXForCausalLM", NEOX),
    "gpt_neox-one-after-another": Case("GPTNeoXForCausalLM", {**NEOX, "use_parallel_residual": False}),
    "gpt_neox-linear-rope": Case("GPTNeoXForCausalLM", {**NEOX, "rope_parameters": LINEAR}),
    "gpt_neox-whole-heads": Case(
        "GPTNeoXForCausalLM",
        {**NEOX, "rotary_pct": 1.0, "rotary_emb_base": 500, "attention_bias": False, "tie_word_embeddings": True},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


def test_an_old_name_of_the_output_layer_is_read(tmp_path: Path) -> None:
    reference_model(CASES["gpt_neox"]).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" in stored or "embed_out.weight" in stored
    head = stored.pop("lm_head.weight") if "lm_head.weight" in stored else stored.pop("embed_out.weight")
    save_file({**stored, "embed_out.weight": head}, tmp_path / "model.safetensors")
    weights = load(tmp_path).weights
    assert weights is not None
    np.testing.assert_array_equal(weights.numpy("lm_head.weight"), head)
