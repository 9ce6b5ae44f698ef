"""Gemma 3 against transformers: normed q and k, two rotary bases; and from GGUF."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from family_parity import Case, check, reference_model
from monograph import to_torch
from monograph.frontends.load import load
from monograph.frontends.models.gemma3_text import Gemma3Text, gemma3_text, unsaid
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
TWO_BASES = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
    "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
KINDS = ["full_attention", "full_attention", "sliding_attention"]
CASES = {
    "gemma3": Case("Gemma3ForCausalLM", {**SIZES, "sliding_window_pattern": 2}),
    "gemma3-two-bases": Case("Gemma3ForCausalLM", {**SIZES, "rope_parameters": TWO_BASES, "layer_types": KINDS}),
    "gemma3-final-cap": Case(
        "Gemma3ForCausalLM", {**SIZES, **CAPS, "sliding_window_pattern": 3, "num_key_value_heads": 1}
    ),
    "gemma3-every-sixth": Case("Gemma3ForCausalLM", {**SIZES, "num_hidden_layers": 6, "attention_bias": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path)


def test_old_settings_of_two_bases_are_read() -> None:
    old = {"rope_theta": 5e5, "rope_local_base_freq": 20.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    config = Gemma3Text.from_dict({**SIZES, **old})
    assert config.rope("full_attention") == {"theta": 5e5, "scaling": old["rope_scaling"], "partial": 1.0}
    assert config.rope("sliding_attention") == {"theta": 20.0, "scaling": {"rope_type": "default"}, "partial": 1.0}


def test_rope_parameters_must_be_by_kind() -> None:
    with pytest.raises(ConfigError, match="rope_parameters have the keys rope_theta, expected sliding_attention"):
        gemma3_text(Gemma3Text.from_dict({**SIZES, "rope_parameters": {"rope_theta": 3.0}})).graph()


def test_gguf_leaves_the_scale_to_the_reader() -> None:
    small = {"num_hidden_layers": 18, "hidden_size": 640, "num_attention_heads": 4, "head_dim": 256}
    everything = {"layer_types": ["full_attention"] * 18, "sliding_window": None}
    heads = {"head_dim": 256, "num_key_value_heads": 4}
    assert unsaid(small) == {"query_pre_attn_scalar": 256, "rope_theta": 1e4, **heads, **everything}
    windowed = {**small, "sliding_window": 512, "rope_theta": 1e6}
    assert unsaid(windowed) == {"query_pre_attn_scalar": 256, "rope_theta": 1e6, **heads}
    large = {"num_hidden_layers": 62, "hidden_size": 5376, "num_attention_heads": 32, "head_dim": 128}
    heads = {"head_dim": 128, "num_key_value_heads": 32}
    assert unsaid({**large, "sliding_window": 1024}) == {"query_pre_attn_scalar": 168, "rope_theta": 1e4, **heads}


def test_gguf_gives_the_same_model(tmp_path: Path) -> None:
    """The names and the +1 on norms are those of llama.cpp's converter."""
    case = Case("Gemma3ForCausalLM", {**SIZES, "num_hidden_layers": 6, "query_pre_attn_scalar": 8})
    reference = reference_model(case)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, 6)
    writer = gguf.GGUFWriter(str(tmp_path / "tiny.gguf"), "gemma3")
    writer.add_context_length(64)
    writer.add_embedding_length(24)
    writer.add_block_count(6)
    writer.add_feed_forward_length(40)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(8)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(4)
    writer.add_rope_freq_base(1e6)
    for name, tensor in reference.state_dict().items():
        if name != "lm_head.weight":
            stored = names.get_name(name, try_suffixes=(".weight",))
            writer.add_tensor(stored, tensor.numpy() + float(name.endswith("norm.weight")))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = load(tmp_path / "tiny.gguf")
    assert model.weights is not None
    for name, tensor in reference.state_dict().items():
        if name != "lm_head.weight":
            np.testing.assert_allclose(model.weights.numpy(name), tensor.numpy(), atol=1e-6)
    ids = np.arange(11)[None] + 20
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(11)[None]}
    with torch.no_grad():
        want = reference(input_ids=torch.from_numpy(ids)).logits.numpy()
    got = to_torch(model)(**{k: torch.from_numpy(v) for k, v in given.items()})["logits"].detach().numpy()
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
