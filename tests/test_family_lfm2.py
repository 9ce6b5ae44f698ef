"""LFM2 against transformers. There a hole in the mask is a zero that takes a place; here it takes none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_parity import TOLERANCE, Case, Pair, Torch, check, error, masks
from monograph.frontends.models.lfm2 import lfm2
from monograph.ir.errors import ConfigError

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {
    "vocab_size": 47,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "full_attn_idxs": [1],
    "block_multiple_of": 8,
    "max_position_embeddings": 64,
}
PADDED = ("ones", "right", "left")
CASES = {
    "plain": Case("Lfm2ForCausalLM", TINY, masks=PADDED),
    "typed-layers": Case(
        "Lfm2ForCausalLM",
        {
            **TINY,
            "full_attn_idxs": None,
            "layer_types": ["full_attention", "conv", "conv"],
            "block_auto_adjust_ff_dim": False,
            "conv_L_cache": 4,
            "tie_word_embeddings": False,
        },
        masks=PADDED,
    ),
    # With a bias, transformers' padding on the left reaches the first tokens, whatever is zeroed before.
    "biases": Case(
        "Lfm2ForCausalLM", {**TINY, "conv_bias": True, "block_ffn_dim_multiplier": 1.3}, masks=("ones", "right")
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equal_to_transformers(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


@pytest.mark.parametrize("kinds", [["conv"], ["conv", "conv", "full"]])
def test_each_layer_has_a_type_that_is_known(kinds: list[str]) -> None:
    given = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
    with pytest.raises(ConfigError, match="for each of 3 layers"):
        lfm2.config_class.from_dict({**given, "layer_types": kinds})


def test_the_older_key_for_tied_weights_counts() -> None:
    given = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "full_attn_idxs": []}
    assert "lm_head.weight" not in lfm2(lfm2.config_class.from_dict(given)).graph().params
    untied = lfm2.config_class.from_dict({**given, "tie_embedding": False})
    assert "lm_head.weight" in lfm2(untied).graph().params


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mask", ["left", "hole"])
def test_a_row_gives_what_transformers_gives_without_its_padding(name: str, mask: str, tmp_path: Path) -> None:
    pair = Pair(CASES[name], tmp_path)
    check_rows_alone(pair, mask)


def check_rows_alone(pair: Pair, mask: str) -> None:
    """Assert that tokens give what transformers gives for those of their row that count, without the others."""
    inputs = pair.inputs(mask)
    got = Torch(pair).full(inputs)["logits"]
    scale = float(np.abs(got).max())
    for row, counts in enumerate(masks(got.shape[1])[mask].astype(bool)):
        alone = {k: v[row : row + 1, counts] for k, v in inputs.items()}
        found = error(got[row, counts], pair.want(alone)["logits"][0], scale)
        assert found <= TOLERANCE, f"row {row}: {found:.1e} of the largest logit"
