"""Switches of configs and oddities of files that change the numbers: as transformers has it, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monograph as mg
import pytest
import torch
import transformers
from family_parity import MASKS, PYTORCH, TOLERANCE, Case, Pair, Torch, check, mask_errors
from monograph.ir.errors import ConfigError, WeightsError
from safetensors.torch import load_file, save_file

NEOX = {
    "vocab_size": 31,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
GPTJ = {"vocab_size": 31, "n_embd": 52, "n_layer": 1, "n_head": 2, "n_positions": 64, "rotary_dim": 14}
T5 = {"vocab_size": 31, "d_model": 12, "d_kv": 5, "d_ff": 20, "num_layers": 1, "num_heads": 3}
WHISPER = {
    "vocab_size": 31,
    "d_model": 12,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 16,
    "num_mel_bins": 5,
    "max_source_positions": 6,
    "max_target_positions": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 500.0}
CASES = {
    "an odd number of turned channels": Case("GPTNeoXForCausalLM", NEOX),
    "odd, scaled": Case("GPTNeoXForCausalLM", {**NEOX, "rope_parameters": LINEAR}),
    "no channel is turned": Case("GPTNeoXForCausalLM", {**NEOX, "rotary_pct": 0.05}),
    "a number of channels, not a share": Case("GPTJForCausalLM", GPTJ),
    "an activation of its own": Case("T5ForConditionalGeneration", {**T5, "dense_act_fn": "silu"}),
    "its own beside a gate": Case(
        "T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu", "dense_act_fn": "relu"}
    ),
    "a gate of its own": Case("T5ForConditionalGeneration", {**T5, "is_gated_act": True}),
}
BLOOM = {"vocab_size": 31, "hidden_size": 12, "n_layer": 1, "n_head": 2}
DEEPSEEK = {
    "vocab_size": 31,
    "hidden_size": 12,
    "intermediate_size": 16,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 0,
    "q_lora_rank": None,
    "kv_lora_rank": 6,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
}
REFUSED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "5 of the 26 channels": ("GPTJForCausalLM", {**GPTJ, "rotary_dim": 5}),
    "28 of the 26 channels": ("GPTJForCausalLM", {**GPTJ, "rotary_dim": 28}),
    "slow_but_exact with pretraining_tp 2": (
        "BloomForCausalLM",
        {**BLOOM, "slow_but_exact": True, "pretraining_tp": 2},
    ),
    "num_experts_per_tok 3 of topk_group 1": ("DeepseekV3ForCausalLM", DEEPSEEK),
    "rotary width 3 must be even": (
        "GPTNeoXForCausalLM",
        {**NEOX, "rope_parameters": {**LINEAR, "rope_type": "yarn", "original_max_position_embeddings": 16}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path, runners=[PYTORCH], parts=[MASKS])


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_is_refused_by_name(message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        Pair(Case(*REFUSED[message]), tmp_path)


def stored(pair: Pair, name: str, values: torch.Tensor) -> Path:
    """The checkpoint of a pair with one more tensor."""
    folder = pair.folder / "checkpoint"
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: values}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_table_of_its_own_beside_a_shared_one_is_refused(part: str, tmp_path: Path) -> None:
    pair = Pair(Case("T5ForConditionalGeneration", T5), tmp_path)
    shared = pair.reference.shared.weight.detach()
    mg.load(stored(pair, f"{part}.embed_tokens.weight", shared.clone()))
    folder = stored(pair, f"{part}.embed_tokens.weight", shared + 1)
    with pytest.raises(WeightsError, match=rf"{part}\.embed_tokens\.weight: .* it differs from shared\.weight"):
        mg.load(folder)


def test_a_head_of_its_own_beside_a_tied_one_is_that_of_the_file(tmp_path: Path) -> None:
    pair = Pair(Case("WhisperForConditionalGeneration", WHISPER), tmp_path)
    head = torch.randn(31, 12, generator=torch.Generator().manual_seed(0))
    folder = stored(pair, "proj_out.weight", head)
    pair.reference = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    torch.testing.assert_close(pair.reference.proj_out.weight.detach(), head)
    pair.model = mg.load(folder)
    assert max(mask_errors(pair, Torch(pair)).values()) <= TOLERANCE
