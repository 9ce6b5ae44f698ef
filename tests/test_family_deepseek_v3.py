"""DeepSeek V3 against transformers; what attention remembers of a token is its latent and one rotary key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from family_parity import Case, Pair, check
from monograph.ir.ops.attention import Attention

pytestmark = pytest.mark.slow

TINY: dict[str, Any] = {
    "vocab_size": 47,
    "hidden_size": 16,
    "intermediate_size": 24,
    "moe_intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 6,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 5,
    "v_head_dim": 7,
    "max_position_embeddings": 64,
}
YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 0.707,
    "mscale_all_dim": 1.0,
    "beta_fast": 2,
    "beta_slow": 1,
}
CASES = {
    "plain": Case("DeepseekV3ForCausalLM", TINY),
    "no-query-latent": Case(
        "DeepseekV3ForCausalLM",
        {
            **TINY,
            "q_lora_rank": None,
            "attention_bias": True,
            "norm_topk_prob": False,
            "n_shared_experts": 2,
            "rope_interleave": False,
            "n_routed_experts": 9,
            "n_group": 3,
            "topk_group": 2,
            "num_experts_per_tok": 4,
            "tie_word_embeddings": True,
        },
    ),
    "yarn": Case("DeepseekV3ForCausalLM", {**TINY, "rope_scaling": YARN, "n_group": 1, "topk_group": 1}),
    "temperature-without-yarn": Case(
        "DeepseekV3ForCausalLM",
        {**TINY, "rope_parameters": {"rope_theta": 100.0, "rope_type": "linear", "factor": 4.0, "mscale_all_dim": 1.0}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equal_to_transformers(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


def test_a_token_is_remembered_by_its_latent_and_one_rotary_key(tmp_path: Path) -> None:
    graph = Pair(CASES["plain"], tmp_path).graph
    nodes = [node for node in graph if isinstance(node.op, Attention)]
    assert len(nodes) == TINY["num_hidden_layers"]
    for node in nodes:
        _, k, v = node.operands[:3]
        assert k is not None and v is not None
        assert (k.shape[2:], v.shape[2:]) == ((1, 6 + 4), (1, 6))
