"""GPT-NeoX, GPT-J and BLOOM against transformers: blocks side by side, part of a head rotated, scores by distance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from family_parity import Case, check, reference_model
from monograph.frontends.dsl import Scope, load_family
from monograph.frontends.layers import alibi
from monograph.frontends.load import load
from monograph.ir import Graph, building, interpret
from monograph.ir.errors import ConfigError
from monograph.ir.types import f32, parse_type
from safetensors.numpy import load_file, save_file
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

pytestmark = pytest.mark.slow

NEOX = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GPTJ = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4}
BLOOM = {"vocab_size": 61, "hidden_size": 24, "n_layer": 2, "n_head": 4}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0, "partial_rotary_factor": 0.5}
CASES = {
    "gpt_neox": Case("GPTNeoXForCausalLM", NEOX),
    "gpt_neox-one-after-another": Case("GPTNeoXForCausalLM", {**NEOX, "use_parallel_residual": False}),
    "gpt_neox-linear-rope": Case("GPTNeoXForCausalLM", {**NEOX, "rope_parameters": LINEAR}),
    "gpt_neox-whole-heads": Case(
        "GPTNeoXForCausalLM",
        {**NEOX, "rotary_pct": 1.0, "rotary_emb_base": 500, "attention_bias": False, "tie_word_embeddings": True},
    ),
    "gptj": Case("GPTJForCausalLM", GPTJ),
    "gptj-whole-heads": Case("GPTJForCausalLM", {**GPTJ, "rotary_dim": 8, "n_inner": 40}),
    "gptj-tied-relu": Case("GPTJForCausalLM", {**GPTJ, "tie_word_embeddings": True, "activation_function": "relu"}),
    "bloom": Case("BloomForCausalLM", BLOOM),
    "bloom-three-heads": Case("BloomForCausalLM", {**BLOOM, "n_head": 3}),
    "bloom-post-norm": Case(
        "BloomForCausalLM",
        {**BLOOM, "n_head": 6, "apply_residual_connection_post_layernorm": True, "tie_word_embeddings": False},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_transformers(name: str, tmp_path: Path) -> None:
    check(CASES[name], tmp_path, runners=("PyTorch",))


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 12])
def test_alibi_equals_that_of_transformers(heads: int) -> None:
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1]])
    graph = Graph("alibi")
    with building(graph):
        given = graph.input("mask", parse_type("i64[B,T]"))
        graph.output("bias", alibi(Scope(graph, "", f32, 0.02), given, heads))
    (got,) = interpret(graph, {"mask": mask}, {}).values()
    want = build_alibi_tensor(torch.from_numpy(mask), heads, torch.float32)
    np.testing.assert_allclose(got, want.numpy().reshape(3, heads, 1, 5), rtol=1e-6)


def test_an_old_name_of_the_output_layer_is_read(tmp_path: Path) -> None:
    reference_model(CASES["gpt_neox"]).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" in stored or "embed_out.weight" in stored
    head = stored.pop("lm_head.weight") if "lm_head.weight" in stored else stored.pop("embed_out.weight")
    save_file({**stored, "embed_out.weight": head}, tmp_path / "model.safetensors")
    weights = load(tmp_path).weights
    assert weights is not None
    np.testing.assert_array_equal(weights.numpy("lm_head.weight"), head)


def test_two_names_of_one_setting_must_agree() -> None:
    config = load_family("bloom").config_class.from_dict({"vocab_size": 9, "n_embed": 16, "num_hidden_layers": 5})
    assert config == load_family("bloom").config_class(vocab=9, dim=16, layers=5)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="'n_embed' is 16, but 'hidden_size' is 24: they mean the same"):
        load_family("bloom").config_class.from_dict({"vocab_size": 9, "hidden_size": 24, "n_embed": 16})
