"""Mamba 2 against transformers. There a hole in the mask lets the state decay; here it leaves it as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from family_parity import Case, Pair, check
from monograph.frontends.models.mamba2 import mamba2
from monograph.ir.errors import ConfigError
from test_family_lfm2 import check_rows_alone

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {
    "vocab_size": 47,
    "hidden_size": 16,
    "num_heads": 4,
    "head_dim": 8,
    "state_size": 5,
    "n_groups": 2,
    "num_hidden_layers": 2,
    "chunk_size": 4,
}
PADDED = ("ones", "right", "left")
CASES = {
    "plain": Case("Mamba2ForCausalLM", TINY, masks=PADDED),
    "limits": Case(
        "Mamba2ForCausalLM",
        {
            **TINY,
            "n_groups": 1,
            "use_conv_bias": False,
            "conv_kernel": 3,
            "time_step_limit": (0.1, 0.7),
            "tie_word_embeddings": True,
        },
        masks=PADDED,
    ),
    # With a bias, transformers' padding on the left reaches the first tokens, whatever is zeroed before.
    "biases": Case("Mamba2ForCausalLM", {**TINY, "use_bias": True, "n_groups": 4}, masks=("ones", "right")),
}


@pytest.mark.parametrize("name", CASES)
def test_equal_to_transformers(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mask", ["left", "hole"])
def test_a_row_gives_what_transformers_gives_without_its_padding(name: str, mask: str, tmp_path: Path) -> None:
    check_rows_alone(Pair(CASES[name], tmp_path), mask)


@pytest.mark.parametrize("limit", [[0.1], [0.0, "large"], [0.0, {"__float__": "NaN"}]], ids=str)
def test_limits_are_two_numbers(limit: list[Any]) -> None:
    given = {"vocab_size": 9, "hidden_size": 8, "num_heads": 2, "head_dim": 8, "num_hidden_layers": 1, "n_groups": 1}
    config = mamba2.config_class.from_dict({**given, "time_step_limit": limit})
    with pytest.raises(ConfigError, match="expected the least and the largest step"):
        mamba2(config).graph()
