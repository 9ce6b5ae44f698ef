"""Rotary frequencies against those of transformers, and settings that must not be passed over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from monograph.ir.errors import ConfigError, MonographError
from monograph.ir.ops import rope_frequencies

LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
CASES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {"rope_type": "llama3", **LLAMA3},
    "yarn": YARN,
    "yarn-betas": {**YARN, "beta_fast": 20.0, "beta_slow": 2.0},
    "yarn-mscale": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.707},
    "yarn-one-mscale": {**YARN, "mscale": 2.0},
    "yarn-not-truncated": {**YARN, "truncate": False},
    "yarn-attention-factor": {**YARN, "attention_factor": 1.25},
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.4, "factor": 2.0},
    "proportional-whole": {"rope_type": "proportional"},
    "yarn-short-context": {**YARN, "original_max_position_embeddings": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_frequencies_are_those_of_transformers(name: str) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    settings = {"rope_theta": 10000.0, **CASES[name]}
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, rope_parameters=settings, max_position_embeddings=256)
    expected = LlamaRotaryEmbedding(config)
    frequencies, factor = rope_frequencies(32, 10000.0, CASES[name])
    np.testing.assert_allclose(frequencies, expected.inv_freq.numpy(), rtol=1e-5)
    assert factor == pytest.approx(expected.attention_scaling, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, r"has partial_rotary_factor = 0\.5, which is not und"),
        ({"rope_type": "linear", "factor": 2.0, "mscale": 1.0}, r"'linear' has mscale = 1\.0, which is not understood"),
        ({**YARN, "beta_fats": 3}, "has beta_fats = 3, which is not understood, did you mean 'beta_fast'"),
        ({**YARN, "beta_slow": "1"}, "has beta_slow = '1', expected a number"),
        ({"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}, r"high_freq_factor = 1\.0, expected more than"),
        ({"rope_type": ["yarn"]}, r"rope_scaling of type \['yarn'\] is not supported"),
    ],
)
def test_settings_that_would_be_passed_over_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rope_frequencies(8, 10000.0, settings)


def test_a_theta_that_is_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="rope theta '10000' a number above 1"):
        rope_frequencies(8, "10000")  # type: ignore[arg-type]


def test_whole_heads_and_empty_settings_are_plain_rotation() -> None:
    plain = rope_frequencies(8, 10000.0)
    assert rope_frequencies(8, 10000.0, {"partial_rotary_factor": 1.0, "factor": None}) == plain


@pytest.mark.parametrize("width", [2**31, 10**18, 10**40])
def test_a_width_that_no_head_has(width: int) -> None:
    with pytest.raises(MonographError, match="expected 1 to"):
        rope_frequencies(width, 10000.0)
